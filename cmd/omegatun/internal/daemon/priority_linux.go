package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"omegatun/cmd/omegatun/internal/config"
)

// All programs' packets wait while a running omegatun waits for a processor, and what arrives meanwhile fills a buffer that
// overflows within 2 ms. The scheduler lets a program that computes finish its turn first, 4 ms for instance, whatever
// its niceness. Only the real-time classes do not wait for that; the lowest priority of theirs is enough.
//
// Who is never asleep there starves others, and older kernels stop him for 50 ms of each second. So a process that needs
// nearly a whole processor for itself goes back to the ordinary class, with this niceness, until it needs less.
const (
	realtimePriority = 1
	niceness         = -15

	tooBusy     = 0.92 // processors in use, on the average of a period: not real time any more
	calmAgain   = 0.80
	judgeEvery  = time.Second
	maxPassings = 4 // over the threads: those that are started meanwhile are like the thread that starts them
)

// governor decides whether the process may be of a real-time class. It has no clock.
type governor struct {
	busy bool
	at   time.Time
	cpu  time.Duration
}

// realtime is told the processor time that the process has used until now.
func (g *governor) realtime(now time.Time, cpu time.Duration) bool {
	if elapsed := now.Sub(g.at); !g.at.IsZero() && elapsed > 0 {
		share := float64(cpu-g.cpu) / float64(elapsed)
		g.busy = share > tooBusy || g.busy && share > calmAgain
	}
	g.at, g.cpu = now, cpu
	return !g.busy
}

// prefer makes the scheduler prefer this process until ctx ends. It needs CAP_SYS_NICE, and does nothing without, or if somebody
// has chosen a class already.
func (d *Daemon) prefer(ctx context.Context, wg *sync.WaitGroup) {
	if d.settings.Priority == config.PriorityNormal {
		return
	}
	if had, err := unix.SchedGetAttr(0, 0); err != nil || had.Policy != unix.SCHED_NORMAL {
		return
	}
	wanted := unix.SchedAttr{Policy: unix.SCHED_RR, Priority: realtimePriority}
	ordinary := unix.SchedAttr{Policy: unix.SCHED_NORMAL, Nice: niceness}
	var err error
	realtime := d.settings.Priority != config.PriorityHigh
	if realtime {
		if err = schedule(wanted); err != nil {
			d.log.Info("no real-time priority", "error", err)
		}
	}
	if !realtime || err != nil {
		if err := schedule(ordinary); err != nil {
			d.log.Info("the priority stays as it is", "error", err)
		}
		return
	}
	wg.Go(func() {
		var g governor
		tick := time.NewTicker(judgeEvery)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				attr := ordinary
				if g.realtime(now, processorTime()) {
					attr = wanted
				}
				if err := schedule(attr); err != nil {
					d.log.Debug("priority not changed", "error", err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
}

// processorTime returns what the process has used.
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// schedule gives all threads of the process a class: each has its own.
func schedule(want unix.SchedAttr) error {
	for range maxPassings {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		changed := false
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				continue
			}
			had, err := unix.SchedGetAttr(tid, 0)
			if err != nil || had.Policy == want.Policy && had.Priority == want.Priority && had.Nice == want.Nice {
				continue // gone, or done
			}
			attr := want
			if err := unix.SchedSetAttr(tid, &attr, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("scheduling class %d, priority %d, niceness %d: %w", want.Policy, want.Priority, want.Nice, err)
			}
			changed = true
		}
		if !changed {
			break
		}
	}
	return nil
}
