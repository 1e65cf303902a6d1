//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// notifyMetrics has the signal that asks for metrics, SIGUSR1, sent to c.
func notifyMetrics(c chan<- os.Signal) { signal.Notify(c, syscall.SIGUSR1) }
