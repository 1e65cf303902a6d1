//go:build !linux

package daemon

import (
	"context"
	"sync"
)

// prefer does nothing: there is no need for it known.
func (d *Daemon) prefer(context.Context, *sync.WaitGroup) {}
