//go:build race

package relay

import (
	"runtime"
	"testing"
)

// TestMain gives the tests one processor: with more, the race detector crashes now and then when timers of a testing/synctest
// bubble fire at once, because they share a state of it that nothing guards (https://go.dev/issue/78156).
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	m.Run()
}
