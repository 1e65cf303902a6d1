//go:build linux

// Command streamcost measures what streams of package session cost, both ends of each in this one process, over loopback:
// memory and processor time of many that are idle, and how many can be opened, used and closed in a second without a leak.
//
//	go run ./scripts/streamcost                              # 10,000 idle streams; 1,000 a second for a minute
//	go run ./scripts/streamcost -idle 1000 -rate 200 -for 10s
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"omegatun/dht"
	"omegatun/dht/key"
	"omegatun/session"
)

// result is what was measured. Memory is resident, after garbage collection.
type result struct {
	Schema       int     `json:"schema"`
	Idle         int     `json:"idle_streams"`
	OpenedPerSec float64 `json:"opened_per_second"` // while they were opened, 64 at once
	StreamKiB    float64 `json:"stream_kib"`        // both ends
	Goroutines   float64 `json:"goroutines_per_stream"`
	IdleCPU      float64 `json:"idle_cpu_percent"` // of one core, for all streams
	Rate         float64 `json:"rate_wanted"`      // per second
	Reached      float64 `json:"rate_reached"`
	Failed       int64   `json:"failed"`
	MedianMillis float64 `json:"echo_median_ms"` // from dialling to the first byte back
	P99Millis    float64 `json:"echo_p99_ms"`
	CPUPerStream float64 `json:"cpu_us_per_stream"` // both ends
	LeakKiB      float64 `json:"leak_kib"`          // more memory in use afterwards than in the first seconds
	LeftOver     int     `json:"goroutines_left"`
}

func main() {
	log.SetFlags(log.Ltime)
	idle := flag.Int("idle", 10_000, "idle streams")
	watch := flag.Duration("watch", 30*time.Second, "how long idle streams are watched")
	rate := flag.Float64("rate", 1000, "streams opened and closed a second")
	during := flag.Duration("for", time.Minute, "for how long")
	out := flag.String("out", "", "`file` for the numbers as JSON")
	flag.Parse()
	if err := run(*idle, *watch, *rate, *during, *out); err != nil {
		log.Fatal(err)
	}
}

// host returns a Host of a network on loopback, which begins with the first.
func host(first *session.Host) (*session.Host, error) {
	cfg := session.Config{Identity: key.Generate(), Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	cfg.DHT.Open = true
	cfg.DHT.Bootstrap = []string{}
	if first != nil {
		cfg.DHT.Bootstrap = []string{first.Addr().String()}
	} else {
		cfg.DHT.Mode = dht.Persistent
	}
	return session.New(cfg)
}

func run(idle int, watch time.Duration, rate float64, during time.Duration, out string) (err error) {
	ctx := context.Background()
	first, err := host(nil)
	if err != nil {
		return err
	}
	defer first.Close() //nolint:errcheck // of no consequence at the end
	server, err := host(first)
	if err != nil {
		return err
	}
	defer server.Close() //nolint:errcheck // of no consequence at the end
	client, err := host(first)
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // of no consequence at the end
	id := key.Generate()
	l, err := server.Listen(id, session.ListenConfig{Admit: func(session.Caller) error { return nil }})
	if err != nil {
		return err
	}
	if err := l.Announced(ctx); err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // an echo of one byte; then it waits for the end
				defer c.Close()
				b := make([]byte, 1)
				if _, err := io.ReadFull(c, b); err == nil {
					_, err = c.Write(b)
					_, _ = c.Read(b)
					_ = err
				}
			}()
		}
	}()
	echo := func() (io.Closer, error) {
		c, err := client.Dial(ctx, id.Public(), session.DialConfig{})
		if err != nil {
			return nil, err
		}
		b := []byte{1}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err = c.Write(b); err == nil {
			_, err = io.ReadFull(c, b)
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return c, nil
	}
	if c, err := echo(); err != nil {
		return err
	} else if err := c.Close(); err != nil {
		return err
	}

	r := result{Schema: 1, Idle: idle, Rate: rate}
	before, goroutines := resident(), runtime.NumGoroutine()
	log.Printf("opening %d streams", idle)
	open, took, err := openMany(idle, echo)
	if err != nil {
		return err
	}
	r.OpenedPerSec = float64(idle) / took.Seconds()
	time.Sleep(15 * time.Second) // handshakes are forgotten
	r.StreamKiB = float64(resident()-before) / 1024 / float64(idle)
	r.Goroutines = float64(runtime.NumGoroutine()-goroutines) / float64(idle)
	used := cpu()
	time.Sleep(watch)
	r.IdleCPU = 100 * (cpu() - used).Seconds() / watch.Seconds()
	for _, c := range open {
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		return err
	}
	clear(open)
	time.Sleep(30 * time.Second) // streams and handshakes are forgotten

	if err := r.churn(echo, during); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if out != "" {
		if err := os.WriteFile(out, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	row := func(name, format string, args ...any) {
		fmt.Printf("%-44s "+format+"\n", append([]any{name}, args...)...)
	}
	row("idle streams, both ends here", "%d, opened %.0f a second", r.Idle, r.OpenedPerSec)
	row("memory of an idle stream, KiB", "%.1f", r.StreamKiB)
	row("goroutines of an idle stream (1 reads, ours)", "%.2f", r.Goroutines)
	row("processor time of all idle streams", "%.1f %% of a core", r.IdleCPU)
	row("streams opened, used and closed a second", "%.0f of %.0f wanted, %d failed", r.Reached, r.Rate, r.Failed)
	row("dial to first byte back, ms", "%.1f median, %.1f p99", r.MedianMillis, r.P99Millis)
	row("processor time of a stream, us", "%.0f", r.CPUPerStream)
	row("left over afterwards", "%.0f KiB of heap, %d goroutines", r.LeakKiB, r.LeftOver)
	return nil
}

// openMany opens streams, 64 at once.
func openMany(n int, echo func() (io.Closer, error)) (open []io.Closer, took time.Duration, err error) {
	began := time.Now()
	open = make([]io.Closer, n)
	errs := make([]error, 64)
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if open[i], errs[w] = echo(); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return open, time.Since(began), errors.Join(errs...)
}

// churn opens streams at the rate, each for one echo.
func (r *result) churn(echo func() (io.Closer, error), during time.Duration) error {
	log.Printf("opening and closing %.0f streams a second", r.Rate)
	heap, goroutines := inUse(), runtime.NumGoroutine()
	used, began := cpu(), time.Now()
	var mu sync.Mutex // guards times
	var times []time.Duration
	var failed atomic.Int64
	var wg sync.WaitGroup
	busy := make(chan struct{}, 2000)
	for n := 0; ; n++ {
		due := began.Add(time.Duration(float64(n) / r.Rate * float64(time.Second)))
		if due.Sub(began) >= during {
			break
		}
		time.Sleep(time.Until(due))
		busy <- struct{}{}
		wg.Go(func() {
			defer func() { <-busy }()
			at := time.Now()
			c, err := echo()
			if err != nil {
				failed.Add(1)
				return
			}
			took := time.Since(at)
			mu.Lock()
			times = append(times, took)
			mu.Unlock()
			_ = c.Close()
		})
	}
	wg.Wait()
	took := time.Since(began)
	if len(times) == 0 {
		return errors.New("no stream could be opened")
	}
	slices.Sort(times)
	r.Reached, r.Failed = float64(len(times))/took.Seconds(), failed.Load()
	r.MedianMillis = times[len(times)/2].Seconds() * 1e3
	r.P99Millis = times[len(times)*99/100].Seconds() * 1e3
	r.CPUPerStream = float64((cpu() - used).Microseconds()) / float64(len(times))
	time.Sleep(30 * time.Second)
	r.LeakKiB = float64(inUse()-heap) / 1024
	r.LeftOver = runtime.NumGoroutine() - goroutines
	return nil
}

// inUse returns the bytes of heap that are reachable.
func inUse() int64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools have kept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// resident returns the memory of this process in bytes.
func resident() int64 {
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		log.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	log.Fatal("no VmRSS in /proc/self/status")
	return 0
}

// cpu returns the processor time used so far.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		log.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
