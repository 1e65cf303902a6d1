package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

func makeDir(t *testing.T) *Dir {
	t.Helper()
	d, err := Make(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// entries returns the names in the folder.
func entries(t *testing.T, d *Dir) (names []string) {
	t.Helper()
	list, err := os.ReadDir(d.Path(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestIdentityIsMadeOnceAndKept(t *testing.T) {
	d := makeDir(t)
	if _, err := d.Identity(); !errors.Is(err, fs.ErrNotExist) || exit.From(err).Try == "" {
		t.Errorf("Identity of an empty folder: %v, want fs.ErrNotExist with a next step", err)
	}
	k, made, err := d.MakeIdentity()
	if err != nil || !made {
		t.Fatalf("MakeIdentity: made %v, %v", made, err)
	}
	again, made, err := d.MakeIdentity()
	if err != nil || made || again.Public() != k.Public() {
		t.Errorf("MakeIdentity again: %v, made %v, %v, want %v", again, made, err, k)
	}
	if names := entries(t, d); len(names) != 1 {
		t.Errorf("the folder has %q, want the identity alone", names)
	}
	if err := d.ImportIdentity(key.Generate()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("ImportIdentity over one: %v, want fs.ErrExist", err)
	}
	if k2, err := d.Identity(); err != nil || k2.Public() != k.Public() {
		t.Errorf("Identity: %v, %v, want %v", k2, err, k)
	}
}

func TestIdentityMadeByManyAtOnceIsOne(t *testing.T) {
	d := makeDir(t)
	var wg sync.WaitGroup
	keys := make([]key.Public, 16)
	for i := range keys {
		wg.Go(func() {
			k, _, err := d.MakeIdentity()
			if err != nil {
				t.Error(err)
			}
			keys[i] = k.Public()
		})
	}
	wg.Wait()
	for i, k := range keys {
		if k != keys[0] {
			t.Errorf("caller %d got %v, caller 0 %v", i, k, keys[0])
		}
	}
}

func TestIdentityThatOthersMayReadIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no file modes here")
	}
	for _, mode := range []fs.FileMode{0o644, 0o640, 0o604, 0o620, 0o601} {
		d := makeDir(t)
		if _, _, err := d.MakeIdentity(); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(d.Path(identityFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d.Path(identityFile), mode); err != nil {
			t.Fatal(err)
		}
		for _, get := range []func() error{
			func() error { _, err := d.Identity(); return err },
			func() error { _, _, err := d.MakeIdentity(); return err },
		} {
			if e := exit.From(get()); e == nil || e.Code != exit.Permission || !strings.Contains(e.Try, "chmod 600") {
				t.Errorf("mode %o: %v, want a permission error that names chmod 600", mode, e)
			}
		}
		if after, err := os.ReadFile(d.Path(identityFile)); err != nil || string(after) != string(before) {
			t.Errorf("mode %o: the file changed (%v)", mode, err)
		}
	}
}

func TestFolderThatOthersMayWriteIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no file modes here")
	}
	for _, mode := range []fs.FileMode{0o777, 0o720, 0o702, fs.ModeSticky | 0o777} {
		dir := t.TempDir()
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Make(dir); exit.From(err) == nil || exit.From(err).Code != exit.Permission {
			t.Errorf("Make of a folder with mode %v: %v, want a permission error", mode, err)
		}
	}
}

func TestParseIdentity(t *testing.T) {
	var seed [key.SeedSize]byte
	for i := range seed {
		seed[i] = 1
	}
	k := key.FromSeed(seed)
	hex := strings.Repeat("01", 32)
	for _, tt := range []struct{ name, text, wantErr string }{
		{"as it is written", string(FormatIdentity(k)), ""},
		{"a seed alone", hex + "\n", ""},
		{"a seed alone, without a line's end", hex, ""},
		{"lines in the other order", "seed " + hex + "\npublic " + k.Public().Hex(), ""},
		{"nothing", "", "no seed"},
		{"no seed", "public " + k.Public().String(), "no seed"},
		{"no public key", "seed " + hex, "no public key"},
		{"another public key", "public " + key.FromSeed([32]byte{9}).Public().String() + "\nseed " + hex, "do not belong together"},
		{"a seed that is too short", "seed 0101", "line 1: a seed has 64 hex digits"},
		{"a seed with other letters", "seed " + strings.Repeat("0g", 32), "line 1: a seed has 64 hex digits"},
		{"a public key that is none", "public abc\nseed " + hex, "line 1: not a public key"},
		{"two seeds", hex + "\n" + hex, "line 2 is not one of an identity"},
		{"another line", "hello there\n", "line 1 is not one of an identity"},
		{"a line without end", strings.Repeat("x", 1<<20), "line 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseIdentity([]byte(tt.text))
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("ParseIdentity: %v, want an error with %q", err, tt.wantErr)
				}
				if strings.Contains(err.Error(), hex) {
					t.Errorf("the error shows the seed: %v", err)
				}
				return
			}
			if err != nil || got.Public() != k.Public() {
				t.Errorf("ParseIdentity: %v, %v, want %v", got, err, k)
			}
		})
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add(FormatIdentity(key.FromSeed([32]byte{1})))
	f.Add([]byte(strings.Repeat("01", 32)))
	f.Add([]byte("seed\npublic\n#"))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := ParseIdentity(text)
		if err != nil {
			return
		}
		again, err := ParseIdentity(FormatIdentity(k))
		if err != nil || again.Public() != k.Public() {
			t.Fatalf("%v, %v after writing %v", again, err, k)
		}
	})
}

func TestCache(t *testing.T) {
	d := makeDir(t)
	var got []string
	if err := d.LoadCache("nodes", &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LoadCache without one: %v, want fs.ErrNotExist", err)
	}
	if err := d.SaveCache("nodes", []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	if err := d.LoadCache("nodes", &got); err != nil || len(got) != 2 || got[1] != "b" {
		t.Errorf("LoadCache: %q, %v", got, err)
	}
	for _, damage := range []string{"", "[\"a\"", "{}", "\x00"} {
		if err := os.WriteFile(d.Path("nodes.json"), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.LoadCache("nodes", new([]string)); err == nil || !strings.Contains(err.Error(), "is damaged") {
			t.Errorf("LoadCache of %q: %v, want that it is damaged", damage, err)
		}
		if err := d.SaveCache("nodes", []string{"c"}); err != nil {
			t.Errorf("SaveCache over damage: %v", err)
		}
	}
	if names := entries(t, d); len(names) != 1 {
		t.Errorf("the folder has %q, want the cache alone", names)
	}
}

func TestFilesStayInTheFolder(t *testing.T) {
	d := makeDir(t)
	outside := filepath.Join(t.TempDir(), "nodes.json")
	if err := os.WriteFile(outside, []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, d.Path("nodes.json")); err != nil {
		t.Skip(err)
	}
	if err := d.LoadCache("nodes", new([]string)); err == nil {
		t.Error("LoadCache followed a link out of the folder")
	}
	if err := d.SaveCache("nodes", []string{"a"}); err != nil { // replaces the link
		t.Fatal(err)
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "[]" {
		t.Errorf("the file outside is %q, %v", b, err)
	}
}

func TestLock(t *testing.T) {
	d := makeDir(t)
	l, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock(); !errors.Is(err, ErrLocked) || exit.From(err).Try == "" {
		t.Errorf("second Lock: %v, want ErrLocked with a next step", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = d.Lock()
	if err != nil {
		t.Fatalf("Lock after Close: %v", err)
	}
	l.Close()
}
