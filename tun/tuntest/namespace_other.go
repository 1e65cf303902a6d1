//go:build !linux

package tuntest

import "testing"

// InNamespace skips the test: this system has no network namespaces.
func InNamespace(t *testing.T) bool {
	t.Helper()
	t.Skip("this system has no network namespaces")
	return false
}
