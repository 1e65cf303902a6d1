//go:build linux

package netlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxTail is how many of the last lines a process wrote are kept for error messages.
const maxTail = 200

// Cmd describes a process for [Net.Start].
type Cmd struct {
	Args []string
	// Env is added to the environment.
	Env []string
	// Stdin: nil is empty.
	Stdin io.Reader
	// Stdout, if not nil, receives the raw output instead of OnLine.
	Stdout io.Writer
	// OnLine is called for each line on stdout, OnErrLine for each on stderr, without the newline, each from
	// a goroutine of its own. May be nil.
	OnLine, OnErrLine func(line string)
}

// Process is a running command. Its methods may be called concurrently.
type Process struct {
	Name    string
	cmd     *exec.Cmd
	started time.Time
	done    chan struct{} // closed after the process ended and its output was read

	mu   sync.Mutex // guards the fields below
	err  error      // of Wait
	tail []string   // the last lines of stdout and stderr, with the seconds since the start
}

// command returns a command that runs in a process group of its own, so that a Ctrl-C in the terminal
// reaches the lab only, which then ends its processes in order.
func command(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// Start starts a process in the namespace. It is ended when the lab is closed, if not before.
func (n *Net) Start(c Cmd) (*Process, error) {
	if n.lab.trace != nil {
		n.lab.trace(n.Name, strings.Join(c.Args, " "))
	}
	p := &Process{Name: n.Name + ": " + strings.Join(c.Args, " "), started: time.Now(), done: make(chan struct{})}
	p.cmd = command(context.Background(), c.Args)
	p.cmd.Env = append(os.Environ(), c.Env...)
	p.cmd.Stdin = c.Stdin
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	var stdout io.Reader
	if c.Stdout != nil {
		p.cmd.Stdout = c.Stdout
	} else if stdout, err = p.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := n.Do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("%s: %w", p.Name, err)
	}
	n.lab.mu.Lock()
	n.lab.processes = append(n.lab.processes, p)
	n.lab.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { p.read(stderr, c.OnErrLine) })
	if stdout != nil {
		wg.Go(func() { p.read(stdout, c.OnLine) })
	}
	go func() {
		wg.Wait()
		err := p.cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(p.done)
	}()
	return p, nil
}

func (p *Process) read(r io.Reader, onLine func(string)) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		p.mu.Lock()
		line := fmt.Sprintf("%8.3f  %s", time.Since(p.started).Seconds(), sc.Text())
		if p.tail = append(p.tail, line); len(p.tail) > maxTail {
			p.tail = slices.Delete(p.tail, 0, maxTail/2)
		}
		p.mu.Unlock()
		if onLine != nil {
			onLine(sc.Text())
		}
	}
	io.Copy(io.Discard, r) //nolint:errcheck // a line too long: let the process go on
}

// PID returns the process id inside the sandbox.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Output returns the last lines the process wrote on stdout and stderr, each after the seconds since its start.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.tail, "\n")
}

// Wait waits for the process to end and returns its exit status, 128 + signal if a signal ended it.
func (p *Process) Wait(ctx context.Context) (code int, err error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return -1, fmt.Errorf("%s: still running: %w", p.Name, context.Cause(ctx))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := errors.AsType[*exec.ExitError](p.err); p.err != nil && !ok {
		return -1, fmt.Errorf("%s: %w", p.Name, p.err)
	}
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return p.cmd.ProcessState.ExitCode(), nil
}

// Signal sends a signal; to a process that has ended it does nothing.
func (p *Process) Signal(s os.Signal) {
	p.cmd.Process.Signal(s) //nolint:errcheck // it may have ended
}

// Stop interrupts the process as Ctrl-C would, kills it if it has not ended after the grace time, and waits.
// It returns the exit status.
func (p *Process) Stop(grace time.Duration) (code int, err error) {
	p.Signal(os.Interrupt)
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if code, err = p.Wait(ctx); err == nil {
		return code, nil
	}
	p.Kill()
	return 128 + int(unix.SIGKILL), fmt.Errorf("%s: did not end within %v of an interrupt:\n%s", p.Name, grace, p.Output())
}

// Kill ends the process with SIGKILL and waits.
func (p *Process) Kill() {
	p.Signal(os.Kill)
	<-p.done
}
