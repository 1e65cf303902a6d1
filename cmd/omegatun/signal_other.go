//go:build !unix

package main

import "os"

// notifyMetrics does nothing: there is no signal to ask for metrics by.
func notifyMetrics(chan<- os.Signal) {}
