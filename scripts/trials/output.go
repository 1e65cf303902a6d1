//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// output gathers what was measured: tables for people as they come, everything for programs at the end.
type output struct {
	w      io.Writer
	parts  map[string]any
	goals  []goal
	failed int                        // goals and self-checks
	old    map[string]json.RawMessage // what the file holds into which the new figures are put
}

// goal is a limit, and what was measured.
type goal struct {
	Name string `json:"name"`
	Want string `json:"want"`
	Got  string `json:"got"`
	OK   bool   `json:"ok"`
}

func newOutput(w io.Writer) *output { return &output{w: w, parts: map[string]any{"schema": 1}} }

// into reads what a file holds, so that new figures take the place of some of its own. A file that does not exist is empty.
func (o *output) into(file string) error {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, &o.old)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// merge returns rows of this run, and those of the file that they do not replace.
func merge[T any](o *output, name string, rows []T, same func(a, b T) bool) ([]T, error) {
	if o.old[name] == nil {
		return rows, nil
	}
	var all []T
	if err := json.Unmarshal(o.old[name], &all); err != nil {
		return nil, fmt.Errorf("rows of %q in the file: %w", name, err)
	}
	for _, r := range rows {
		if i := slices.IndexFunc(all, func(old T) bool { return same(old, r) }); i >= 0 {
			all[i] = r
		} else {
			all = append(all, r)
		}
	}
	return all, nil
}

// add prints a table and keeps the rows behind it under a name.
func (o *output) add(name, title string, rows any, t *table) {
	o.parts[name] = rows
	fmt.Fprintf(o.w, "\n%s\n\n", title)
	t.print(o.w)
}

// atMost records a goal of a duration in milliseconds.
func (o *output) atMost(name string, limit, got float64, there bool) {
	g := goal{Name: name, Want: "≤ " + ms(limit), Got: ms(got), OK: there && got <= limit}
	if !there {
		g.Got = "never"
	}
	o.goal(g)
}

func (o *output) goal(g goal) {
	o.goals = append(o.goals, g)
	if !g.OK {
		o.failed++
	}
}

// finish prints the goals and stores everything.
func (o *output) finish(file string) error {
	if len(o.goals) > 0 {
		t := newTable("goal", "wanted", "measured", "reached")
		for _, g := range o.goals {
			verdict := "yes"
			if !g.OK {
				verdict = "NO"
			}
			t.add(g.Name, g.Want, g.Got, verdict)
		}
		o.add("goals", "Goals", o.goals, t)
	}
	if file == "" {
		return nil
	}
	b, err := o.json()
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o644)
}

// end is finish, and returns errGoals if anything is not as it should be.
func (o *output) end(file string) error {
	if err := o.finish(file); err != nil {
		return err
	}
	if o.failed > 0 {
		return errGoals
	}
	return nil
}

// json returns everything as an object, each row on a line of its own.
func (o *output) json() ([]byte, error) {
	var b bytes.Buffer
	sep := "{\n"
	for _, name := range slices.Sorted(maps.Keys(o.parts)) {
		part, err := json.Marshal(o.parts[name])
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s%q: ", sep, name)
		sep = ",\n"
		var rows []json.RawMessage
		if part[0] != '[' || json.Unmarshal(part, &rows) != nil {
			b.Write(part)
			continue
		}
		b.WriteString("[")
		for i, row := range rows {
			if i > 0 {
				b.WriteString(",")
			}
			b.WriteString("\n ")
			b.Write(row)
		}
		b.WriteString("\n]")
	}
	b.WriteString("\n}\n")
	return b.Bytes(), nil
}

// ms prints milliseconds.
func ms(v float64) string {
	if v >= 10_000 {
		return fmt.Sprintf("%.1f s", v/1000)
	}
	return fmt.Sprintf("%.0f ms", v)
}

func msOf(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// quantile returns the q-quantile of values, 0 ≤ q ≤ 1: the smallest value that at least that share is not above.
func quantile(values []float64, q float64) (v float64, ok bool) {
	if len(values) == 0 {
		return 0, false
	}
	s := slices.Clone(values)
	slices.Sort(s)
	i := int(q*float64(len(s))+0.999999) - 1
	return s[min(max(i, 0), len(s)-1)], true
}

// table is text in columns.
type table struct{ rows [][]string }

func newTable(head ...string) *table { return &table{[][]string{head}} }

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) {
	width := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, c := range row {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	for _, row := range t.rows {
		var b strings.Builder
		for i, c := range row {
			b.WriteString(c)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(c)+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}
