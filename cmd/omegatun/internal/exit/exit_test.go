package exit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"testing"
)

func TestFrom(t *testing.T) {
	known := New(UnknownPeer, "no peer is called %q", "x").WithTry("omegatun status")
	for _, tt := range []struct {
		name   string
		err    error
		code   Code
		reason string
		try    string
	}{
		{"an exit error", known, UnknownPeer, `no peer is called "x"`, "omegatun status"},
		{"a wrapped exit error", fmt.Errorf("ping: %w", known), UnknownPeer, `ping: no peer is called "x"`, "omegatun status"},
		{"cancelled", fmt.Errorf("dial: %w", context.Canceled), Interrupted, "dial: context canceled", ""},
		{"too late", context.DeadlineExceeded, Timeout, "context deadline exceeded", ""},
		{"anything else", errors.New("disk full"), Other, "disk full", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := From(tt.err)
			if e.Code != tt.code || e.Reason != tt.reason || e.Try != tt.try {
				t.Errorf("From(%v) = %d %q %q, want %d %q %q", tt.err, e.Code, e.Reason, e.Try, tt.code, tt.reason, tt.try)
			}
		})
	}
	if From(nil) != nil {
		t.Error("From(nil) is not nil")
	}
}

func TestNewKeepsTheCause(t *testing.T) {
	if err := New(Permission, "read key: %w", fs.ErrPermission); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("errors.Is(%v, fs.ErrPermission) is false", err)
	}
}

func TestText(t *testing.T) {
	e := New(NoDaemon, "nothing runs").WithTry("sudo omegatun up\nor look at the logs")
	want := "error: nothing runs\n  try: sudo omegatun up\n       or look at the logs\n"
	if got := e.Text(); got != want {
		t.Errorf("Text:\n%swant:\n%s", got, want)
	}
	if got, want := New(Other, "gone").Text(), "error: gone\n"; got != want {
		t.Errorf("Text without a next step: %q, want %q", got, want)
	}
}

func TestJSON(t *testing.T) {
	e := New(Refused, "it said no").WithTry("ask its owner")
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"schema":1,"event":"error","code":8,"reason":"it said no","try":"ask its owner"}`
	if string(b) != want {
		t.Errorf("Marshal: %s, want %s", b, want)
	}
	var back Error
	if err := json.Unmarshal(b, &back); err != nil || back.Code != e.Code || back.Reason != e.Reason || back.Try != e.Try {
		t.Errorf("Unmarshal: %+v, %v, want %+v", back, err, e)
	}
	if err := json.Unmarshal([]byte(`{"schema":1,"event":"down"}`), &back); err == nil {
		t.Error("Unmarshal took another event for an error")
	}
}
