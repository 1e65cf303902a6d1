//go:build linux

// Package interop tests omegatun against the JavaScript implementation of HyperDHT, npm's hyperdht: as nodes, as
// server and as client, on loopback and across two NATs. scripts/interop/run runs it.
package interop

import (
	"testing"

	"omegatun/scripts/e2e/e2etest"
)

func TestMain(m *testing.M) { e2etest.Main(m) }
