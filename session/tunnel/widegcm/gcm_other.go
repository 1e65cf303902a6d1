//go:build !amd64

package widegcm

import (
	"crypto/cipher"
	"errors"
)

// Supported reports whether this processor has the instructions: none of this kind has.
func Supported() bool { return false }

// New returns an error.
func New([]byte) (cipher.AEAD, error) { return nil, errors.ErrUnsupported }
