//go:build linux

// Command demo shows omegatun at work on one machine: two hosts behind two home routers find each other
// through a DHT of eight nodes and become reachable for each other. It exits with 0 only if every step held.
// scripts/demo builds and runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"omegatun/scripts/netlab"
)

func main() {
	os.Exit(run())
}

func run() int {
	bin := flag.String("omegatun", "", "the omegatun `command` to show")
	discard := flag.String("discard", "", "`folder` with the commands, removed once they are loaded")
	shell := flag.Bool("shell", false, "open a shell on host a at the end")
	verbose := flag.Bool("v", false, "print the commands that build the network and run in it")
	flag.Parse()
	// Whoever started us cleans up after us; without them there is nothing to stay for.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	if err := netlab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	if *discard != "" {
		var err error
		if *bin, err = adopt(*bin, *discard); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			return 1
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	d := &demo{
		show: newShow(os.Stdout), bin: *bin, shell: *shell, verbose: *verbose,
		connected: map[string]bool{},
	}
	err := d.run(ctx)
	switch {
	case err == nil:
		d.line("", "%s", d.paint(bold, "every step held"))
		return 0
	case ctx.Err() != nil || errors.Is(err, context.Canceled):
		d.line("", "interrupted; everything is taken down")
		return 130
	}
	d.failed(err)
	return 1
}

// adopt copies the command into the sandbox, and removes the folder it came from, so that even a killed demo leaves
// nothing behind. It returns the path of the copy.
func adopt(bin, folder string) (string, error) {
	b, err := os.ReadFile(bin)
	if err != nil {
		return "", err
	}
	path := "/run/" + filepath.Base(bin)
	return path, errors.Join(os.WriteFile(path, b, 0o755), os.RemoveAll(folder))
}
