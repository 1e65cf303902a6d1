package main

import (
	"encoding/xml"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSimulation is a small version of what the command measures.
func TestSimulation(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	p := plan{
		sizes: []int{100, 300}, hard: 300, servers: 25, searches: 100, besieged: 5,
		half: 6 * time.Minute, step: 20 * time.Second, perStep: 10, seed: 1, announced: t.Logf,
	}
	r := p.run()
	t.Log("\n" + r.table())
	for _, g := range r.goals() {
		if g.searches < 10 {
			t.Errorf("%s: only %d searches", g.name, g.searches)
		}
		if want := g.want - 0.02; g.rate < want { // few searches say little
			t.Errorf("%s: %.4f found, want %.4f", g.name, g.rate, want)
		}
	}
	for _, s := range r.Sizes {
		if s.Hops > s.Log2 || s.Requests < 20 || s.Requests > 12*s.Log2 {
			t.Errorf("%d nodes: %.1f hops, %.1f requests", s.Nodes, s.Hops, s.Requests)
		}
		if s.KBytes > 100 {
			t.Errorf("%d nodes: %.0f KiB a node", s.Nodes, s.KBytes)
		}
	}
	charts := r.charts()
	if len(charts) != 4 {
		t.Errorf("%d charts", len(charts))
	}
	for name, c := range charts {
		d := xml.NewDecoder(strings.NewReader(c.svg()))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if strings.Contains(c.svg(), "NaN") || strings.Contains(c.svg(), "Inf") {
			t.Errorf("%s has no numbers", name)
		}
	}
}

func TestMerge(t *testing.T) {
	sizes := func(list ...int) (r []sizeResult) {
		for _, n := range list {
			r = append(r, sizeResult{Nodes: n})
		}
		return r
	}
	old := result{Sizes: sizes(100, 1000), Hard: 1000, Halved: make([]point, 3), Liars: new(outcome{Found: 1})}
	for _, row := range []struct {
		name  string
		r     result
		sizes []int
		hard  int
		liars int
	}{
		{"another size", result{Sizes: sizes(500), Hard: 500}, []int{100, 500, 1000}, 1000, 1},
		{"the same size again", result{Sizes: sizes(100)}, []int{100, 1000}, 1000, 1},
		{"the liars", result{Hard: 1000, Liars: new(outcome{Found: 2})}, []int{100, 1000}, 1000, 2},
		{"the liars among fewer", result{Hard: 10, Liars: new(outcome{Found: 2})}, []int{100, 1000}, 10, 2},
	} {
		got := row.r.merge(old)
		var nodes []int
		for _, s := range got.Sizes {
			nodes = append(nodes, s.Nodes)
		}
		if !slices.Equal(nodes, row.sizes) || got.Hard != row.hard || got.Liars.Found != row.liars || (len(got.Halved) == 3) != (row.hard == 1000) {
			t.Errorf("%s: %v, %+v", row.name, nodes, got)
		}
	}
}

func TestTimersAndOrder(t *testing.T) {
	w := newWorld(1)
	var got []int
	note := func(i int) func() { return func() { got = append(got, i) } }
	w.AfterFunc(2*time.Second, note(2))
	w.AfterFunc(time.Second, note(1))
	w.AfterFunc(2*time.Second, note(3))
	stopped := w.AfterFunc(time.Second, note(9))
	late := w.AfterFunc(time.Second, note(5))
	if !stopped.Stop() || stopped.Stop() || !late.Reset(4*time.Second) {
		t.Error("Stop and Reset report what is not so")
	}
	began := w.now
	w.run(3*time.Second, nil)
	if w.now.Sub(began) != 3*time.Second || len(got) != 3 {
		t.Errorf("%v passed, %v", w.now.Sub(began), got)
	}
	w.run(time.Minute, func() bool { return len(got) == 4 })
	if w.now.Sub(began) != 4*time.Second || late.Reset(time.Second) {
		t.Errorf("%v passed, %v", w.now.Sub(began), got)
	}
	for i, want := range []int{1, 2, 3, 5} {
		if got[i] != want {
			t.Errorf("order %v", got)
		}
	}
}
