// Package state keeps what an omegatun must remember: its identity, the peers listed by commands, and what it
// learnt about the network. All of it lies in one folder.
//
//	identity      the key pair, mode 0600; never rewritten, refused if it is damaged or others may read it
//	peers.toml    what "omegatun add" listed
//	*.json        caches: anything wrong with one, and it is as if it were not there
//	lock          held while a daemon uses the folder
//
// Files are written to a temporary name, synced and renamed, so that a crash leaves the old one or the new one.
package state

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"omegatun/cmd/omegatun/internal/exit"
)

// PeersFile is the name of the list of peers that commands keep.
const PeersFile = "peers.toml"

// maxFileBytes bounds what is read from a file of the folder.
const maxFileBytes = 16 << 20

// Dir is the open folder. It is safe for concurrent use.
type Dir struct {
	path string
	root *os.Root
}

// Make opens the folder, and makes it, mode 0700, if it is not there. Errors are [exit.Error]s.
func Make(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		if errors.Is(err, fs.ErrNotExist) { // below a folder that is not one, such as /proc
			return nil, exit.New(exit.Other, "cannot make the state folder: %v", err).WithTry("another folder: --state <folder>")
		}
		return nil, folderError(path, err)
	}
	return Open(path)
}

// Open opens the folder. Errors are [exit.Error]s; if it is not there, they wrap [fs.ErrNotExist].
func Open(path string) (*Dir, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, folderError(path, err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0 {
		e := exit.New(exit.Permission, "others may write to the state folder %s (mode %04o)", path, info.Mode().Perm())
		if info.Mode()&fs.ModeSticky != 0 { // as /tmp: others could put an identity or a list of peers there
			return nil, e.WithTry("a folder of its own: --state %s", filepath.Join(path, "omegatun"))
		}
		return nil, e.WithTry("chmod go-w %s", path)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, folderError(path, err)
	}
	return &Dir{path: path, root: root}, nil
}

func folderError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return exit.New(exit.Permission, "may not use the state folder: %w", err).
			WithTry("sudo omegatun …, or a folder of your own: --state <folder>")
	case errors.Is(err, fs.ErrNotExist):
		return exit.Wrap(exit.Usage, err, "there is no identity in %s", path).
			WithTry("omegatun key new")
	default:
		return exit.New(exit.Other, "cannot use the state folder %s: %w", path, err).
			WithTry("another folder: --state <folder>")
	}
}

// Close closes the folder.
func (d *Dir) Close() error { return d.root.Close() }

// Path returns the path of a file in the folder, or of the folder itself if name is empty.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// WriteFile puts b into a file in one step: after a crash there is the old content or the new one, never a part.
// The file's mode is 0600.
func (d *Dir) WriteFile(name string, b []byte) error {
	tmp := "." + name + "." + rand.Text()[:8]
	err := d.writeNew(tmp, b)
	if err == nil {
		err = d.root.Rename(tmp, name)
	}
	if err != nil {
		d.root.Remove(tmp) //nolint:errcheck // the first error is the one to tell
		if errors.Is(err, fs.ErrPermission) {
			return exit.New(exit.Permission, "may not write %s: %w", d.Path(name), err).
				WithTry("sudo omegatun …, or a folder of your own: --state <folder>")
		}
		return fmt.Errorf("write %s: %w", d.Path(name), err)
	}
	return d.sync()
}

// writeNew makes a file that is not there yet, and has it on disk when it returns.
func (d *Dir) writeNew(name string, b []byte) error {
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// sync has the folder's entries on disk when it returns. Not every system can.
func (d *Dir) sync() error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// errNotRegular is what readFile says of folders, pipes, links that lead out of the folder, and the like.
var errNotRegular = errors.New("not a regular file in this folder")

// readFile returns the content of a file, and its mode.
func (d *Dir) readFile(name string) ([]byte, fs.FileMode, error) {
	info, err := d.root.Stat(name) // first, because to open a pipe may block
	if link, lerr := d.root.Lstat(name); err == nil && !info.Mode().IsRegular() ||
		err != nil && lerr == nil && link.Mode()&fs.ModeSymlink != 0 { // it leads nowhere, or out of the folder
		return nil, 0, fmt.Errorf("%s is %w", d.Path(name), errNotRegular)
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, 0, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes))
	return b, info.Mode(), err
}

// LoadCache decodes the cache of that name into v. Without the file it returns an error that wraps
// [fs.ErrNotExist]; if the content cannot be used the error says so, v is to be thrown away, and the next SaveCache
// replaces the file.
func (d *Dir) LoadCache(name string, v any) error {
	b, _, err := d.readFile(name + ".json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("cache %s is damaged: %w", d.Path(name+".json"), err)
	}
	return nil
}

// SaveCache keeps v, as JSON, under that name.
func (d *Dir) SaveCache(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return fmt.Errorf("cache %s: %w", name, err)
	}
	return d.WriteFile(name+".json", append(b, '\n'))
}

// Lock takes the folder for this process until the lock is closed. If another process has it, the error is an
// [exit.Error] with [ErrLocked] as its cause. A process that dies gives its lock back.
func (d *Dir) Lock() (io.Closer, error) {
	f, err := d.root.OpenFile("lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, folderError(d.path, err)
	}
	if err := lockFile(f); err != nil {
		f.Close()
		if errors.Is(err, ErrLocked) {
			return nil, exit.New(exit.Other, "another omegatun uses %s: %w", d.path, err).
				WithTry("omegatun down, or a second one beside it: --state <another folder>")
		}
		return nil, fmt.Errorf("lock %s: %w", d.path, err)
	}
	return f, nil
}

// ErrLocked is the cause of [Dir.Lock]'s error if another process has the folder.
var ErrLocked = errors.New("it is locked")
