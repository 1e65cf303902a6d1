package tuntest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// insideVariable is set in the process that InNamespace starts, to the name of the test.
const insideVariable = "OMEGATUN_TEST_NAMESPACE"

// InNamespace runs the calling test in a network namespace of its own, where it may do as it likes with interfaces
// and routes. In the process that go test started it returns false, after it ran the test once more in another
// process, and the caller returns. In that process, whose threads are all in the new namespace, it returns true. It
// is called first in a test, and not in a subtest:
//
//	if !tuntest.InNamespace(t) {
//		return
//	}
//
// Without root, a user namespace is made as well. Where the system permits neither, the test is skipped.
func InNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVariable) == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe",
		"-test.run=^"+regexp.QuoteMeta(t.Name())+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), insideVariable+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	_, ran := errors.AsType[*exec.ExitError](err)
	switch {
	case err != nil && !ran:
		t.Skipf("this system does not let us make a network namespace: %v", err)
	case err != nil:
		t.Errorf("in a network namespace: %v\n%s", err, out.Bytes())
	case strings.Contains(out.String(), "--- SKIP: "+t.Name()+" "):
		t.Skipf("in a network namespace:\n%s", out.Bytes())
	default:
		t.Logf("in a network namespace:\n%s", out.Bytes())
	}
	return false
}
