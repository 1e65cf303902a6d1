//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// process is one end.
type process struct {
	cmd    *exec.Cmd
	lines  *bufio.Scanner // of standard output, or of standard error
	before time.Duration  // CPU time when what is measured began
}

// node returns a command that runs one of our scripts, or a file in the folder of packages.
func (b *bench) node(ctx context.Context, file string, args ...string) *exec.Cmd {
	if !filepath.IsAbs(file) {
		file = filepath.Join(b.scripts, file)
	}
	c := exec.CommandContext(ctx, "node", append([]string{file}, args...)...)
	c.Env = append(os.Environ(), "NODE_PATH="+b.modules)
	return c
}

// start starts a process that says something on standard output, or standard error, when it is ready.
func start(cmd *exec.Cmd, onStderr bool) (*process, error) {
	var lines io.Reader
	var err error
	if onStderr {
		lines, err = cmd.StderrPipe()
	} else {
		lines, err = cmd.StdoutPipe()
		cmd.Stderr = os.Stderr
	}
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{cmd: cmd, lines: bufio.NewScanner(lines)}, nil
}

// line returns what follows prefix on the next line that begins with it.
func (p *process) line(prefix string) (string, error) {
	var said []string
	for p.lines.Scan() {
		if rest, ok := strings.CutPrefix(p.lines.Text(), prefix); ok {
			return rest, nil
		}
		said = append(said, p.lines.Text())
	}
	err := fmt.Errorf("%s ended without a line %q: %s", filepath.Base(p.cmd.Path), prefix, strings.Join(said, "; "))
	return "", errors.Join(err, p.cmd.Wait())
}

// stop kills the process.
func (p *process) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// begin notes the CPU time used so far.
func (p *process) begin() (err error) {
	p.before, err = p.used()
	return err
}

// cpu returns the CPU time used since begin, also of a process that has been waited for.
func (p *process) cpu() (time.Duration, error) {
	if s := p.cmd.ProcessState; s != nil {
		return s.UserTime() + s.SystemTime() - p.before, nil
	}
	now, err := p.used()
	return now - p.before, err
}

func (p *process) used() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from field 3
	var ticks int64
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// cpuOf returns the CPU times of two ends.
func cpuOf(sender, receiver *process) (s, r time.Duration, err error) {
	if s, err = sender.cpu(); err == nil {
		r, err = receiver.cpu()
	}
	return s, r, err
}
