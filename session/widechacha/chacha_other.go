//go:build !amd64

package widechacha

import "crypto/cipher"

// widen returns the AEAD for all messages: short, because no processor of this kind has the instructions.
func widen(short cipher.AEAD, _ []byte) cipher.AEAD { return short }
