package tunnel

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/cpu"

	"omegatun/dht/compact"
)

// offerMagic marks an offer among the bytes that follow a handshake payload.
const offerMagic = "omtn"

// Suites is a set of AEAD ciphers. [Params] holds a set of one.
type Suites uint8

const (
	// ChaCha20Poly1305 is in every offer.
	ChaCha20Poly1305 Suites = 1 << iota
	// AES256GCM is in an offer when the CPU has instructions for it.
	AES256GCM
)

// PreferredSuites returns the suites that this machine should offer: AES-256-GCM is among them only where it
// is both fast and free of secret-dependent timing.
func PreferredSuites() Suites {
	x86, arm, s390 := cpu.X86, cpu.ARM64, cpu.S390X
	if x86.HasAES && x86.HasPCLMULQDQ && x86.HasSSE41 && x86.HasSSSE3 ||
		arm.HasAES && arm.HasPMULL ||
		s390.HasAES && s390.HasAESCTR && s390.HasGHASH ||
		runtime.GOARCH == "ppc64le" {
		return ChaCha20Poly1305 | AES256GCM
	}
	return ChaCha20Poly1305
}

// String lists the suites, separated by commas.
func (s Suites) String() string {
	var names []string
	for _, suite := range []struct {
		bit  Suites
		name string
	}{{ChaCha20Poly1305, "chacha20-poly1305"}, {AES256GCM, "aes-256-gcm"}} {
		if s&suite.bit != 0 {
			names = append(names, suite.name)
			s &^= suite.bit
		}
	}
	if s != 0 || len(names) == 0 {
		names = append(names, fmt.Sprintf("suites %#x", uint8(s)))
	}
	return strings.Join(names, ",")
}

// Features is a set of what an endpoint can do beyond the minimum.
type Features uint64

const (
	// FeatureUnfinished accepts packets of [ContentUnfinished].
	FeatureUnfinished Features = 1 << iota
	// FeaturePostQuantum mixes ML-KEM-768 into new keys.
	FeaturePostQuantum
	// FeatureParts accepts plaintexts of [ContentPart] and answers an [MTUProbe].
	FeatureParts
	// FeatureBeside says of this one handshake that its sender is connected through a relay already and looks for a direct
	// path: the two need not meet at a relay again.
	FeatureBeside
)

// Offer is what one side says about its end of the tunnel.
type Offer struct {
	// Index is what datagrams to the sender of the offer carry. It is random and names one epoch of one session
	// among all that the sender has.
	Index    uint32
	Suites   Suites // ChaCha20Poly1305 is understood
	Features Features
}

// Append appends the wire form of o, with its marker, to b.
func (o Offer) Append(b []byte) []byte {
	body := compact.AppendUint32(make([]byte, 0, 16), o.Index)
	body = append(body, byte(o.Suites|ChaCha20Poly1305))
	body = compact.AppendUint(body, uint64(o.Features))
	b = append(b, offerMagic...)
	b = compact.AppendUint(b, version)
	return compact.AppendBuffer(b, body)
}

// ParseOffer looks for an offer in the bytes that follow the last field of a handshake payload. It reports
// false, and no error, when there is none of this version: the peer wants no tunnel. The error wraps
// [ErrOffer]; the peer meant to send an offer, but no tunnel can come of it.
func ParseOffer(trailer []byte) (o Offer, ok bool, err error) {
	rest := trailer
	for bytes.HasPrefix(rest, []byte(offerMagic)) {
		r := compact.NewReader(rest[len(offerMagic):])
		v, body := r.Uint(), r.Buffer()
		if err := r.Err(); err != nil {
			return Offer{}, false, fmt.Errorf("%w: %w", ErrOffer, err)
		}
		if v == version {
			o, err := parseOfferBody(body)
			return o, err == nil, err
		}
		rest = r.Rest()
	}
	return Offer{}, false, nil
}

func parseOfferBody(body []byte) (Offer, error) {
	r := compact.NewReader(body)
	o := Offer{Index: r.Uint32(), Suites: Suites(r.Uint8()), Features: Features(r.Uint())}
	if err := r.Err(); err != nil {
		return Offer{}, fmt.Errorf("%w: %w", ErrOffer, err)
	}
	if o.Suites&ChaCha20Poly1305 == 0 {
		return Offer{}, fmt.Errorf("%w: it lacks the suite that every offer has", ErrOffer)
	}
	return o, nil
}

// Params is what both offers together amount to.
type Params struct {
	Suite          Suites   // exactly one
	Features       Features // set by both sides
	RemoteFeatures Features // set by the peer: what it accepts from us
	LocalIndex     uint32   // in datagrams to us
	RemoteIndex    uint32   // in datagrams to the peer
}

// Negotiate combines both sides' offers. The peer comes to the same suite and features. The error wraps
// [ErrOffer]; offers from [ParseOffer] cause none.
func Negotiate(local, remote Offer) (Params, error) {
	common := (local.Suites | ChaCha20Poly1305) & remote.Suites
	p := Params{
		Features:       local.Features & remote.Features,
		RemoteFeatures: remote.Features,
		LocalIndex:     local.Index,
		RemoteIndex:    remote.Index,
	}
	switch {
	case common&AES256GCM != 0:
		p.Suite = AES256GCM
	case common&ChaCha20Poly1305 != 0:
		p.Suite = ChaCha20Poly1305
	default:
		return Params{}, fmt.Errorf("%w: no suite in common", ErrOffer)
	}
	return p, nil
}
