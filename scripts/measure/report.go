//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// column is one figure of the report.
type column struct {
	name, title string
	format      string
	drawn       bool
	long        string
}

var columns = []column{
	{"tcp_gbits", "tcp", "%.2f", true, "TCP, one flow, Gbit/s"},
	{"reverse_gbits", "rev", "%.2f", false, ""},
	{"four_gbits", "4x", "%.2f", false, ""},
	{"tcp_cpu_s_per_gb", "cpu/GB", "%.2f", true, "CPU seconds per GB, both ends (less is better)"},
	{"tcp_cores", "cores", "%.2f", false, ""},
	{"udp64_kpps", "udp64", "%.0f", true, "UDP, 64 bytes, thousand packets a second"},
	{"udp1400_kpps", "udp1400", "%.0f", false, ""},
	{"ping_ms", "ping", "%.3f", false, ""},
	{"ping_p99_ms", "p99", "%.3f", false, ""},
	{"loaded_ping_ms", "ping+", "%.3f", true, "ping under load, median ms (less is better)"},
	{"loaded_ping_p99_ms", "p99+", "%.3f", false, ""},
	{"tcp_retransmits", "retr", "%.0f", false, ""},
	{"idle_mib", "MiB", "%.1f", false, ""},
	{"loaded_mib", "peak", "%.1f", false, ""},
	{"connect_s", "conn s", "%.3f", false, ""},
	{"binary_mib", "bin MiB", "%.1f", false, ""},
}

// schema is the version of what is stored.
const schema = 1

// report is what is stored.
type report struct {
	Schema  int                  `json:"schema"`
	Date    string               `json:"date"`
	Machine string               `json:"machine"`
	Cable   string               `json:"cable"`
	Rounds  int                  `json:"rounds"`
	Order   []string             `json:"order"`
	Median  map[string]figures   `json:"median"`
	Size    map[string]int64     `json:"binary_bytes"`
	Missing map[string]string    `json:"missing,omitempty"` // what was to be measured and could not, and why
	All     map[string][]figures `json:"all"`
}

func newReport(o *options, all map[string][]figures) *report {
	r := &report{
		Schema: schema, Date: time.Now().UTC().Format(time.DateOnly), Machine: machine(o.tcp), Cable: "veth",
		Order: o.systems, Size: make(map[string]int64), All: all,
	}
	if o.plain {
		r.Cable = "veth without offloads"
	}
	for name := range all {
		if info, err := os.Stat(filepath.Join(o.bin, program(name))); err == nil {
			r.Size[name] = info.Size()
		}
	}
	r.summarize()
	return r
}

// summarize counts the rounds and takes the medians.
func (r *report) summarize() {
	r.Rounds, r.Median = 0, make(map[string]figures)
	for name, rounds := range r.All {
		r.Rounds = max(r.Rounds, len(rounds))
		values := make(map[string][]float64)
		for _, f := range rounds {
			for k, v := range f {
				if !math.IsNaN(v) && !math.IsInf(v, 0) {
					values[k] = append(values[k], v)
				} else {
					delete(f, k) // JSON has no such numbers
				}
			}
		}
		r.Median[name] = make(figures)
		for k, v := range values {
			r.Median[name][k] = quantile(v, 0.5)
		}
		if size := r.Size[name]; size != 0 {
			r.Median[name]["binary_mib"] = float64(size) / (1 << 20)
		}
	}
}

// mergeFiles returns the report on all rounds that the files tell of.
func mergeFiles(names []string) (*report, error) {
	var list []*report
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		r := new(report)
		if err := json.Unmarshal(b, r); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		list = append(list, r)
	}
	return merge(list)
}

// merge returns the report on the rounds of all. They must have been made on one machine, over the same kind of cable, and with the
// same programs.
func merge(list []*report) (*report, error) {
	if len(list) == 0 {
		return nil, errors.New("nothing to merge")
	}
	all := &report{
		Schema: schema, Machine: list[0].Machine, Cable: list[0].Cable,
		Size: make(map[string]int64), Missing: make(map[string]string), All: make(map[string][]figures),
	}
	for _, r := range list {
		if r.Schema != schema || r.Machine != all.Machine || r.Cable != all.Cable {
			return nil, fmt.Errorf("these are different things: schema %d, %s, %s; and schema %d, %s, %s",
				schema, all.Machine, all.Cable, r.Schema, r.Machine, r.Cable)
		}
		all.Date = max(all.Date, r.Date)
		for _, name := range r.Order {
			if size, known := all.Size[name]; known && size != r.Size[name] {
				return nil, fmt.Errorf("%s is another program in some of the rounds", name)
			}
			all.Size[name] = r.Size[name]
			if !slices.Contains(all.Order, name) {
				all.Order = append(all.Order, name)
			}
			all.All[name] = append(all.All[name], r.All[name]...)
		}
		maps.Copy(all.Missing, r.Missing)
	}
	all.summarize()
	return all, nil
}

// publish prints the report, and writes the files that were asked for.
func (r *report) publish(o *options) error {
	r.print(os.Stdout)
	if o.json != "" {
		b, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if o.svg != "" {
		return os.WriteFile(o.svg, r.svg(), 0o644)
	}
	return nil
}

// program returns the file that a system runs.
func program(system string) string {
	switch system {
	case "omegatun-chacha", "omegatun-relay":
		return "omegatun"
	case "null-cipher":
		return "omegatun-null"
	}
	return system
}

// machine describes the machine, and how TCP is controlled: as tcp says, or else as on the machine.
func machine(tcp string) string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOARCH
	}
	if tcp == "" {
		control, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control") // namespaces begin with that of the machine
		tcp = strings.TrimSpace(string(control))
	}
	return fmt.Sprintf("%d processors, %s, Linux %s, TCP with %s", runtime.NumCPU(), runtime.GOARCH,
		unix.ByteSliceToString(u.Release[:]), tcp)
}

// reference is what ratios are taken to.
const reference = "wireguard-go"

// print writes the medians, and the ratios to the reference, as a table.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "%s; %s; medians of %d rounds\n", r.Machine, r.Cable, r.Rounds)
	fmt.Fprintf(w, "%-16s", "")
	for _, c := range columns {
		fmt.Fprintf(w, "%9s", c.title)
	}
	fmt.Fprintln(w)
	line := func(name string, value func(column) (float64, bool), format string) {
		fmt.Fprintf(w, "%-16s", name)
		for _, c := range columns {
			f := format
			if f == "" {
				f = c.format
			}
			if v, ok := value(c); ok {
				fmt.Fprintf(w, "%9s", fmt.Sprintf(f, v))
			} else {
				fmt.Fprintf(w, "%9s", "-")
			}
		}
		fmt.Fprintln(w)
	}
	for _, name := range r.Order {
		line(name, func(c column) (float64, bool) { v, ok := r.Median[name][c.name]; return v, ok }, "")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Missing)) {
		fmt.Fprintf(w, "%-16s not measured: %s\n", name, r.Missing[name])
	}
	if r.Median[reference] == nil {
		return
	}
	fmt.Fprintf(w, "ratio to %s\n", reference)
	for _, name := range r.Order {
		line(name, func(c column) (float64, bool) {
			v, ok := r.Median[name][c.name]
			base := r.Median[reference][c.name]
			return v / base, ok && base != 0
		}, "%.2f")
	}
}

// svg draws a group of bars for each column that is to be drawn.
func (r *report) svg() []byte {
	const width, bar, gap, left = 720, 20, 6, 150
	var b bytes.Buffer
	y := 30
	for _, c := range columns {
		if !c.drawn {
			continue
		}
		most := 0.0
		for _, name := range r.Order {
			most = max(most, r.Median[name][c.name])
		}
		if most == 0 {
			continue
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" class="title">%s</text>`+"\n", left, y, html.EscapeString(c.long))
		y += 10
		for _, name := range r.Order {
			v, ok := r.Median[name][c.name]
			if !ok || v == 0 {
				continue
			}
			class := "other"
			if strings.HasPrefix(name, "omegatun") {
				class = "ours"
			}
			length := v / most * (width - left - 80)
			fmt.Fprintf(&b, `<text x="%d" y="%d" class="name">%s</text>`, left-8, y+bar-5, html.EscapeString(name))
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.0f" height="%d" class="%s"/>`, left, y, length, bar, class)
			fmt.Fprintf(&b, `<text x="%.0f" y="%d">`+c.format+"</text>\n", left+length+6, y+bar-5, v)
			y += bar + gap
		}
		y += 24
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", width, y+10)
	out.WriteString(`<style>text{fill:#333}.title{font-weight:bold}.name{text-anchor:end}.ours{fill:#2563eb}.other{fill:#9ca3af}` +
		`@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>` + "\n")
	out.Write(b.Bytes())
	fmt.Fprintf(&out, `<text x="%d" y="%d" font-size="11">%s; %s; medians of %d rounds, %s</text>`+"\n</svg>\n",
		left, y, html.EscapeString(r.Machine), r.Cable, r.Rounds, r.Date)
	return out.Bytes()
}
