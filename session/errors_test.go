package session

import (
	"errors"
	"testing"

	"omegatun/dht"
)

func TestNoPathErrorSaysWhatWasTried(t *testing.T) {
	for _, row := range []struct {
		tried int
		err   error
		want  string
	}{
		{0, nil, "no path: there is no address to try (our NAT: random, theirs: consistent)"},
		{1, nil, "no path: the only address that could be tried does not answer (our NAT: random, theirs: consistent)"},
		{2, errors.New("gave up"), "no path: none of 2 addresses answers (our NAT: random, theirs: consistent): gave up"},
	} {
		e := &NoPathError{Local: dht.FirewallRandom, Remote: dht.FirewallConsistent, Tried: make([]Path, row.tried), Err: row.err}
		if got := e.Error(); got != row.want {
			t.Errorf("%d tried: %q, want %q", row.tried, got, row.want)
		}
	}
}
