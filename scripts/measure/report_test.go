//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestIperfIsRead(t *testing.T) {
	const good = `{"start":{},"end":{"sum_sent":{"retransmits":3},"sum_received":{"bytes":2000000000,"bits_per_second":4e9}}}`
	for _, row := range []struct {
		name, text string
		gbits      float64 // 0: an error
		err        string
	}{
		{"a run", good, 4, ""},
		{"refused", `{"start":{},"end":{},"error":"the server is busy"}`, 0, "the server is busy"},
		{"nothing arrived", `{"end":{"sum_received":{"bytes":0,"bits_per_second":0}}}`, 0, "nothing was received"},
		{"not JSON", "iperf3: command line error", 0, "iperf3"},
		{"cut off", good[:len(good)/2], 0, "iperf3"},
		{"empty", "", 0, "iperf3"},
	} {
		gbits, size, retransmits, err := parseIperf([]byte(row.text))
		switch {
		case row.gbits == 0:
			if err == nil || !strings.Contains(err.Error(), row.err) {
				t.Errorf("%s: error %v, want one with %q", row.name, err, row.err)
			}
		case err != nil || gbits != row.gbits || size != 2e9 || retransmits != 3:
			t.Errorf("%s: %v Gbit/s, %v bytes, %v retransmits, %v", row.name, gbits, size, retransmits, err)
		}
	}
}

func TestPingIsRead(t *testing.T) {
	const reply = "64 bytes from 10.9.0.2: icmp_seq=1 ttl=64 time="
	for _, row := range []struct {
		name, text string
		want       []float64
	}{
		{"three", reply + "0.31 ms\n" + reply + "12 ms\n" + reply + "0.4 ms\n", []float64{0.31, 12, 0.4}},
		{"one is lost", reply + "0.31 ms\n\n" + reply + "1.5 ms\n3 packets transmitted, 2 received, time 2003ms", []float64{0.31, 1.5, 1000}},
		{"none", "3 packets transmitted, 0 received, 100% packet loss, time 2003ms", []float64{1000, 1000, 1000}},
	} {
		if got, err := parsePings(row.text, 3); err != nil || !slices.Equal(got, row.want) {
			t.Errorf("%s: %v, %v, want %v", row.name, got, err, row.want)
		}
	}
}

func TestQuantiles(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(99 - i)
	}
	for _, row := range []struct {
		values  []float64
		q, want float64
	}{
		{[]float64{7}, 0.5, 7},
		{[]float64{7}, 0.99, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{3, 1, 2}, 0, 1},
		{[]float64{3, 1, 2}, 1, 3},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
	} {
		if got := quantile(row.values, row.q); got != row.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", row.values, row.q, got, row.want)
		}
	}
	if got := quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("quantile of nothing = %v", got)
	}
}

// rounds is a report on some rounds of two systems.
func rounds(gbits ...float64) *report {
	r := &report{
		Schema: schema, Date: "2026-01-0" + string(rune('0'+len(gbits))), Machine: "m", Cable: "veth", Order: []string{"omegatun", reference},
		Size: map[string]int64{"omegatun": 2 << 20}, All: make(map[string][]figures),
	}
	for _, g := range gbits {
		r.All["omegatun"] = append(r.All["omegatun"], figures{"tcp_gbits": g, "ping_ms": math.NaN()})
		r.All[reference] = append(r.All[reference], figures{"tcp_gbits": 2, "connect_s": 0.5})
	}
	r.summarize()
	return r
}

func TestMediansAndRatios(t *testing.T) {
	r := rounds(6, 1, 5)
	if want := (figures{"tcp_gbits": 5, "binary_mib": 2}); !maps.Equal(r.Median["omegatun"], want) || r.Rounds != 3 {
		t.Errorf("medians of %d rounds: %v, want of 3 %v", r.Rounds, r.Median["omegatun"], want)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Errorf("the report cannot be stored: %v", err)
	}
	r.Missing = map[string]string{"nebula": "cannot be built"}
	var out strings.Builder
	r.print(&out)
	var lines [][]string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.Fields(line)[:2])
	}
	want := [][]string{
		{"m;", "veth;"},
		{"tcp", "rev"},
		{"omegatun", "5.00"},
		{reference, "2.00"},
		{"nebula", "not"},
		{"ratio", "to"},
		{"omegatun", "2.50"},
		{reference, "1.00"},
	}
	if !slices.EqualFunc(lines, want, slices.Equal) {
		t.Errorf("the table begins with %v, want %v", lines, want)
	}
}

func TestPicturesAreXML(t *testing.T) {
	r := rounds(6)
	r.Machine = `a "machine" <&>`
	d := xml.NewDecoder(bytes.NewReader(r.svg()))
	bars := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, r.svg())
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	if bars != 2 {
		t.Errorf("%d bars, want one for each system", bars)
	}
}

func TestRunsAreMerged(t *testing.T) {
	dir := t.TempDir()
	var files []string
	store := func(name string, r *report) string {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	files = append(files, store("a", rounds(4, 9)), store("b", rounds(5, 6, 3)))
	merged, err := mergeFiles(files)
	if err != nil {
		t.Fatal(err)
	}
	if want := rounds(4, 9, 5, 6, 3); merged.Rounds != 5 || merged.Date != "2026-01-03" || !slices.Equal(merged.Order, want.Order) ||
		!maps.EqualFunc(merged.Median, want.Median, maps.Equal) {
		t.Errorf("merged: %d rounds of %s, %v, %v; want 5 of 2026-01-03, %v, %v",
			merged.Rounds, merged.Date, merged.Order, merged.Median, want.Order, want.Median)
	}

	for _, row := range []struct {
		name   string
		change func(*report)
		err    string
	}{
		{"another machine", func(r *report) { r.Machine = "n" }, "different"},
		{"another cable", func(r *report) { r.Cable = "veth without offloads" }, "different"},
		{"another version", func(r *report) { r.Schema++ }, "different"},
		{"another program", func(r *report) { r.Size["omegatun"]++ }, "another program"},
	} {
		r := rounds(1)
		row.change(r)
		if _, err := mergeFiles(append(files, store("c", r))); err == nil || !strings.Contains(err.Error(), row.err) {
			t.Errorf("%s: error %v, want one with %q", row.name, err, row.err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "d"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join(dir, "d"), filepath.Join(dir, "none")} {
		if _, err := mergeFiles([]string{name}); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

func TestWhatIsMeasured(t *testing.T) {
	o := options{parts: "tcp,idle"}
	for part, want := range map[string]bool{"tcp": true, "idle": true, "load": false, "": false} {
		if got := o.has(part); got != want {
			t.Errorf("has(%q) = %v", part, got)
		}
	}
	for system := range starters {
		if p := program(system); p == "" || strings.HasPrefix(system, "omegatun-") && system != "omegatun-old" && p != "omegatun" {
			t.Errorf("%s runs the program %q", system, p)
		}
	}
	f := figures{"tcp_gbits": 1.25, "unknown": 7}
	if got := f.String(); got != "tcp 1.25  " {
		t.Errorf("a round prints as %q", got)
	}
}
