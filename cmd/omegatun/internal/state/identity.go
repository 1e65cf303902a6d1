package state

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// identityFile is the name of the file with the key pair.
const identityFile = "identity"

// Identity returns the identity that is kept in the folder. Without one it returns an [exit.Error] that wraps
// [fs.ErrNotExist]. A file that others may read is refused, and so is a damaged one; neither is ever replaced.
func (d *Dir) Identity() (key.Private, error) {
	path := d.Path(identityFile)
	b, mode, err := d.readFile(identityFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return key.Private{}, exit.Wrap(exit.Usage, err, "there is no identity in %s", d.path).
			WithTry("omegatun key new")
	case errors.Is(err, fs.ErrPermission):
		return key.Private{}, exit.New(exit.Permission, "may not read the identity: %w", err).
			WithTry("sudo omegatun …, or an identity of your own: --state <folder>")
	case errors.Is(err, errNotRegular):
		return key.Private{}, exit.New(exit.Usage, "the identity %w", err).
			WithTry("put the file itself there; or give it up: move this away, then omegatun key new")
	case err != nil:
		return key.Private{}, exit.New(exit.Other, "cannot read the identity: %w", err)
	}
	if mode := mode.Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return key.Private{}, exit.New(exit.Permission,
			"others may read the identity %s (mode %04o), so it is not used", path, mode).
			WithTry("chmod 600 %s\nif somebody may have read it, make a new one: move it away, then omegatun key new", path)
	}
	k, err := ParseIdentity(b)
	if err != nil {
		return key.Private{}, exit.New(exit.Usage, "the identity %s is damaged: %w", path, err).
			WithTry("restore it from a copy; or give it up: move it away, then omegatun key new")
	}
	return k, nil
}

// MakeIdentity returns the identity that is kept in the folder, and makes one if there is none.
func (d *Dir) MakeIdentity() (k key.Private, made bool, err error) {
	k, err = d.Identity()
	if !errors.Is(err, fs.ErrNotExist) {
		return k, false, err
	}
	k = key.Generate()
	err = d.ImportIdentity(k)
	if errors.Is(err, fs.ErrExist) { // somebody else was faster
		k, err = d.Identity()
		return k, false, err
	}
	return k, err == nil, err
}

// ImportIdentity makes k the identity of the folder. If there is one already, the error wraps [fs.ErrExist].
func (d *Dir) ImportIdentity(k key.Private) error {
	tmp := "." + identityFile + "." + rand.Text()[:8]
	exists := func() error {
		return exit.Wrap(exit.Usage, fs.ErrExist, "there is an identity in %s already", d.path).
			WithTry("move the file %s away first, if it is to be given up", d.Path(identityFile))
	}
	if _, err := d.root.Lstat(identityFile); err == nil {
		return exists()
	}
	err := d.writeNew(tmp, FormatIdentity(k))
	if err == nil {
		err = d.root.Link(tmp, identityFile) // unlike a rename it never replaces
		if err != nil && !errors.Is(err, fs.ErrExist) {
			err = d.root.Rename(tmp, identityFile) // not every file system has links
		}
	}
	d.root.Remove(tmp) //nolint:errcheck // the identity's own name is what counts
	switch {
	case errors.Is(err, fs.ErrExist):
		return exists()
	case errors.Is(err, fs.ErrPermission):
		return exit.New(exit.Permission, "may not write the identity: %w", err).
			WithTry("sudo omegatun …, or a folder of your own: --state <folder>")
	case err != nil:
		return fmt.Errorf("write the identity: %w", err)
	}
	return d.sync()
}

// FormatIdentity returns the text of an identity file:
//
//	# comment
//	public <z-base-32>
//	seed <64 hex digits>
func FormatIdentity(k key.Private) []byte {
	seed := k.Seed()
	var b bytes.Buffer
	b.WriteString("# An omegatun identity. Keep it secret: whoever has the seed is you.\n")
	b.WriteString("# The seed is 32 bytes in hex; the key pair is Ed25519 (RFC 8032), as in HyperDHT.\n")
	fmt.Fprintf(&b, "public %s\n", k.Public())
	fmt.Fprintf(&b, "seed %s\n", hex.EncodeToString(seed[:]))
	return b.Bytes()
}

// ParseIdentity reads what [FormatIdentity] writes, and also a seed alone, as 64 hex digits. The two lines may come
// in any order, each once; the public key must be that of the seed. Errors never contain the seed.
func ParseIdentity(b []byte) (key.Private, error) {
	var k key.Private
	var public key.Public
	lines := 0
	bare := false
	scan := bufio.NewScanner(bytes.NewReader(b))
	for scan.Scan() {
		lines++
		line := strings.TrimSpace(scan.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		what, value, ok := strings.Cut(line, " ")
		value = strings.TrimSpace(value)
		switch {
		case ok && what == "public" && public.IsZero():
			var err error
			if public, err = key.ParsePublic(value); err != nil {
				return key.Private{}, fmt.Errorf("line %d: %w", lines, err)
			}
		case ok && what == "seed" && k.IsZero(), !ok && k.IsZero():
			if bare = !ok; bare {
				value = line
			}
			var seed [key.SeedSize]byte
			if len(value) != hex.EncodedLen(len(seed)) {
				return key.Private{}, fmt.Errorf("line %d: a seed has 64 hex digits, this has %d characters", lines, len(value))
			}
			if _, err := hex.Decode(seed[:], []byte(value)); err != nil {
				return key.Private{}, fmt.Errorf("line %d: a seed has 64 hex digits, this has others among them", lines)
			}
			k = key.FromSeed(seed)
		default:
			return key.Private{}, fmt.Errorf("line %d is not one of an identity", lines)
		}
	}
	switch {
	case errors.Is(scan.Err(), bufio.ErrTooLong):
		return key.Private{}, fmt.Errorf("line %d is too long", lines+1)
	case scan.Err() != nil:
		return key.Private{}, fmt.Errorf("line %d: %w", lines+1, scan.Err())
	case k.IsZero():
		return key.Private{}, errors.New("it has no seed")
	case public.IsZero() && !bare:
		return key.Private{}, errors.New("it has no public key")
	case !public.IsZero() && public != k.Public():
		return key.Private{}, errors.New("its public key and its seed do not belong together")
	}
	return k, nil
}
