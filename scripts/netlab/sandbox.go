//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// insideEnv tells the program, started a second time, that it is inside.
	insideEnv = "OMEGATUN_NETLAB"
	// netnsDir is where ip(8) looks for named network namespaces.
	netnsDir = "/run/netns"
)

// Enter moves the program into a sandbox: namespaces of its own for mounts, processes and the network, and
// for users too unless it is root, and an empty /run. It must be called at the start of main or TestMain.
//
// It does so by starting the program again with the same arguments and streams. In the first process Enter
// does not return: it passes on signals, waits, and exits as the second did. If the first process is killed,
// the second ends with it, and with the second everything in the sandbox. In the second process Enter
// returns nil. An error says why no sandbox is possible on this machine and what to do about it.
func Enter() error {
	if os.Getenv(insideEnv) != "" {
		return inside()
	}
	// The parent-death signal is bound to the thread that starts the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("netlab: %w", err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{w} // descriptor 3: a complaint, or nothing
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
	}
	root := os.Geteuid() == 0
	if !root {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(sigs)
	err = cmd.Start()
	w.Close()
	switch {
	case err != nil && root:
		return fmt.Errorf("netlab: no new namespaces: %w; in a container, give it CAP_SYS_ADMIN (--privileged)", err)
	case err != nil:
		return fmt.Errorf("netlab: no user namespace: %w; allow them (sysctl user.max_user_namespaces,"+
			" kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns) or be root", err)
	}
	go func() {
		for s := range sigs {
			cmd.Process.Signal(s) //nolint:errcheck // it may have ended
		}
	}()
	complaint, _ := io.ReadAll(r)
	err = cmd.Wait()
	if len(complaint) > 0 {
		return errors.New(string(complaint))
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		os.Exit(128 + int(ws.Signal()))
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		os.Exit(code)
	}
	return fmt.Errorf("netlab: %w", err)
}

// inside prepares the sandbox in its first process.
func inside() error {
	if err := os.Unsetenv(insideEnv); err != nil {
		return err
	}
	report := os.NewFile(3, "report")
	if err := prepare(); err != nil {
		fmt.Fprintf(report, "netlab: %v", err)
		os.Exit(1)
	}
	return report.Close()
}

// prepare makes the mounts of the sandbox and looks for what it cannot do without.
func prepare() error {
	for _, m := range []struct {
		source, target, fs string
		flags              uintptr
	}{
		{"none", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"netlab", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := unix.Mount(m.source, m.target, m.fs, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := os.Mkdir(netnsDir, 0o755); err != nil {
		return err
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("/dev/net/tun is missing: modprobe tun, or in a container --device /dev/net/tun")
	case errors.Is(err, os.ErrPermission):
		return errors.New("/dev/net/tun may not be opened: sudo chmod 666 /dev/net/tun, or be root")
	case err != nil:
		return err
	}
	tun.Close()
	var missing []string
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing %s: apt-get install iproute2 nftables", strings.Join(missing, " and "))
	}
	return nil
}
