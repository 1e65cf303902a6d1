//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// show prints what happens: on each line the time since the start, where it happened, and what.
type show struct {
	w      io.Writer
	start  time.Time
	colour bool

	mu sync.Mutex // one line at a time
}

func newShow(f *os.File) *show {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &show{
		w: f, start: time.Now(),
		colour: err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	}
}

// Styles, as SGR parameters.
const (
	bold   = "1"
	dim    = "2"
	red    = "1;31"
	green  = "32"
	yellow = "33"
	blue   = "36"
	purple = "35"
)

func (s *show) paint(style, text string) string {
	if !s.colour || style == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

func (s *show) print(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprint(s.w, text)
}

// title opens a part of the show.
func (s *show) title(text string) {
	s.print("\n" + s.paint(bold, text) + "\n")
}

// line prints one fact; where is a host or "".
func (s *show) line(where, format string, args ...any) {
	style := map[string]string{"a": blue, "b": purple}[where]
	at := s.paint(dim, fmt.Sprintf("%7.2f s", time.Since(s.start).Seconds()))
	s.print(fmt.Sprintf("%s  %s  %s\n", at, s.paint(style, fmt.Sprintf("%-1s", where)), fmt.Sprintf(format, args...)))
}

// held prints a step that held.
func (s *show) held(where, format string, args ...any) {
	s.line(where, "%s %s", s.paint(green, "✓"), fmt.Sprintf(format, args...))
}

// failed prints what went wrong, all lines of it.
func (s *show) failed(err error) {
	text := strings.ReplaceAll(err.Error(), "\n", "\n               ")
	s.line("", "%s %s", s.paint(red, "✗"), text)
}

// trace prints a command that builds the network.
func (s *show) trace(namespace, command string) {
	s.line("", "%s", s.paint(dim, namespace+" $ "+command))
}

// amount writes bytes for people.
func amount[T int64 | uint64](n T) string {
	switch {
	case n >= 10_000_000:
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	case n >= 10_000:
		return fmt.Sprintf("%.0f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d bytes", n)
}

// millis writes a short time for people.
func millis(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms < 10 {
		return fmt.Sprintf("%.2f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}
