// Package systemd installs omegatun as a service of systemd, and tells systemd how it is doing.
//
// It runs systemctl and journalctl with arguments of its own; what a user names ends up in the unit file only, quoted.
package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unicode"

	"omegatun/cmd/omegatun/internal/exit"
)

const (
	// Name is that of the service.
	Name = "omegatun"
	// UnitDir is where units of the machine's administrator are.
	UnitDir = "/etc/systemd/system"
)

// Unit describes the service.
type Unit struct {
	Program  string   // absolute path
	Args     []string // global flags
	Writable []string // folders that it writes to, besides /var/lib/omegatun and /run/omegatun
}

// Text returns the unit file. What the service may do is what it needs: the network, /dev/net/tun, its folders.
func (u *Unit) Text() (string, error) {
	command, err := quote(append([]string{u.Program}, append(u.Args, "up")...))
	if err != nil {
		return "", err
	}
	writable := ""
	if len(u.Writable) > 0 {
		paths, err := quote(u.Writable)
		if err != nil {
			return "", err
		}
		writable = "ReadWritePaths=" + paths + "\n"
	}
	return strings.NewReplacer("@COMMAND@", command, "@WRITABLE@\n", writable).Replace(template), nil
}

// template is the unit file. omegatun up, while one is running, has it read its configuration again.
const template = `[Unit]
Description=Private network between machines (omegatun)
Wants=network-online.target
After=network-online.target nss-lookup.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=@COMMAND@
ExecReload=@COMMAND@
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2 4
TimeoutStopSec=15

StateDirectory=omegatun
StateDirectoryMode=0700
RuntimeDirectory=omegatun
ConfigurationDirectory=omegatun
@WRITABLE@
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_SYS_NICE
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
LockPersonality=yes
MemoryDenyWriteExecute=yes
NoNewPrivileges=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=read-only
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
`

// quote returns words as one line of a unit file.
//
// Source: systemd.service(5), "Command lines", and systemd.syntax(7), "Quoting".
func quote(words []string) (string, error) {
	quoted := make([]string, len(words))
	for i, w := range words {
		if strings.ContainsFunc(w, unicode.IsControl) {
			return "", exit.New(exit.Usage, "%q cannot be written into a unit file", w)
		}
		w = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(w)
		if strings.ContainsAny(w, " \"\\';") || w == "" {
			w = `"` + w + `"`
		}
		quoted[i] = w
	}
	return strings.Join(quoted, " "), nil
}

// Install writes the unit file into dir, enables the service and starts it, or starts it anew.
func Install(ctx context.Context, u *Unit, dir string) error {
	text, err := u.Text()
	if err != nil {
		return err
	}
	if err := available(); err != nil {
		return err
	}
	path := filepath.Join(dir, Name+".service")
	if err := replace(path, text); err != nil {
		return fileError(err)
	}
	for _, args := range [][]string{{"daemon-reload"}, {"enable", "--quiet", Name}, {"restart", Name}} {
		if err := systemctl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// Uninstall stops the service and removes the unit file from dir. It reports whether there was one.
func Uninstall(ctx context.Context, dir string) (bool, error) {
	path := filepath.Join(dir, Name+".service")
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err := available(); err != nil {
		return false, err
	}
	if err := systemctl(ctx, "disable", "--quiet", "--now", Name); err != nil {
		return false, err
	}
	if err := os.Remove(path); err != nil {
		return false, fileError(err)
	}
	return true, systemctl(ctx, "daemon-reload")
}

// replace writes a file as a whole or not at all.
func replace(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+Name+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is gone if all went well
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func fileError(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return exit.New(exit.Permission, "may not change the unit file: %w", err).WithTry("sudo omegatun service …")
	}
	return exit.New(exit.Other, "cannot change the unit file: %w", err)
}

// Do starts, stops or restarts the service: verb is what systemctl calls it.
func Do(ctx context.Context, verb string) error {
	if err := available(); err != nil {
		return err
	}
	return systemctl(ctx, verb, Name)
}

// State is how the service is doing.
type State struct {
	Installed bool   `json:"installed"`
	Enabled   bool   `json:"enabled"` // it is started with the machine
	Active    string `json:"active"`  // systemd's word: "active", "inactive", "failed", "activating", …
	Detail    string `json:"detail"`  // and its more precise one: "running", "dead", "auto-restart", …
	PID       string `json:"pid,omitempty"`
	Since     string `json:"since,omitempty"`
	Text      string `json:"text,omitempty"` // what the service says about itself
}

// Query returns the state of the service.
func Query(ctx context.Context) (*State, error) {
	if err := available(); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "systemctl", "show", Name,
		"--property=LoadState,UnitFileState,ActiveState,SubState,MainPID,ActiveEnterTimestamp,StatusText")
	out, err := cmd.Output()
	if err != nil {
		return nil, failed(ctx, cmd, err, nil)
	}
	values := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[name] = value
		}
	}
	s := &State{
		Installed: values["LoadState"] == "loaded", Enabled: values["UnitFileState"] == "enabled",
		Active: values["ActiveState"], Detail: values["SubState"], PID: values["MainPID"],
		Since: values["ActiveEnterTimestamp"], Text: values["StatusText"],
	}
	if s.PID == "0" {
		s.PID = ""
	}
	return s, nil
}

// Logs copies what the service has logged to w, the latest lines; with follow also what it will, until ctx ends.
func Logs(ctx context.Context, w io.Writer, lines int, follow bool) error {
	args := []string{"--unit=" + Name, "--no-pager", "--output=cat", fmt.Sprintf("--lines=%d", lines)}
	if follow {
		args = append(args, "--follow")
	}
	cmd := exec.CommandContext(ctx, "journalctl", args...)
	var says bytes.Buffer
	printed := &counter{w: w}
	cmd.Stdout, cmd.Stderr = printed, &says
	err := cmd.Run()
	switch {
	case err == nil && printed.n == 0 && says.Len() > 0 && ctx.Err() == nil: // that there are no logs, or none that this user may see
		return failed(ctx, cmd, errors.New("it printed nothing"), says.Bytes())
	case errors.Is(err, exec.ErrNotFound):
		return noSystemd()
	case err != nil && ctx.Err() == nil: // Ctrl-C is how to end it
		return failed(ctx, cmd, err, says.Bytes())
	}
	return nil
}

// counter counts what is written to w.
type counter struct {
	w io.Writer
	n int
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += n
	return n, err
}

// available returns an error if there is no systemd.
func available() error {
	if _, err := exec.LookPath("systemctl"); err != nil {
		return noSystemd()
	}
	return nil
}

func noSystemd() error {
	return exit.New(exit.Other, "this machine has no systemd").
		WithTry("have its own service manager run: omegatun up")
}

func systemctl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	says, err := cmd.CombinedOutput()
	if err != nil {
		return failed(ctx, cmd, err, says)
	}
	return nil
}

// failed is the error of a program that says says.
func failed(ctx context.Context, cmd *exec.Cmd, err error, says []byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok && len(says) == 0 {
		says = e.Stderr
	}
	text, _, _ := strings.Cut(strings.TrimSpace(string(says)), "\n")
	if strings.Contains(text, "not been booted with systemd") {
		return noSystemd()
	}
	if text == "" {
		text = err.Error()
	}
	e := exit.New(exit.Other, "%s: %s", strings.Join(cmd.Args[:min(2, len(cmd.Args))], " "), text)
	if os.Geteuid() > 0 {
		return e.WithTry("sudo omegatun service …")
	}
	return e.WithTry("omegatun service logs")
}

// Notify tells systemd how the service is doing, if it was systemd that started this process: state is such as
// "READY=1". socket is the value of NOTIFY_SOCKET; empty: nobody wants to know.
//
// Source: sd_notify(3).
func Notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	if strings.HasPrefix(socket, "@") {
		socket = "\x00" + socket[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("systemd: notify: %w", err)
	}
	_, err = c.Write([]byte(state))
	return errors.Join(err, c.Close())
}
