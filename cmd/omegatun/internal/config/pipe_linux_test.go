package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A pipe is read as a file is, for --config <(…), and one into which nobody writes is not waited for.
func TestConfigurationFromAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readBounded(path); !errors.Is(err, errNobodyWrites) {
		t.Errorf("nobody writes: %v, want %v", err, errNobodyWrites)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const text = "port = 1\n"
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := readBounded(fmt.Sprintf("/proc/self/fd/%d", r.Fd())); err != nil || string(b) != text {
		t.Errorf("read %q, %v; want %q", b, err, text)
	}
}
