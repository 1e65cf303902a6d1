//go:build linux

package main

import (
	"bufio"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
)

// dialsRow is a place where both ends dialled at once, again and again.
type dialsRow struct {
	Where  string  `json:"where"`
	Dials  int     `json:"dials"`
	OK     bool    `json:"one_session_each"`
	Settle float64 `json:"settled_ms"` // simulated, the slowest
}

// dialsTest is the test of the in-memory lab that dials, and says with attributes how it went.
const dialsTest = "TestManySimultaneousDials"

// readDials reads what the test printed.
func readDials(r io.Reader, w *output) error {
	var rows []dialsRow
	row := func(name string) *dialsRow {
		i := slices.IndexFunc(rows, func(r dialsRow) bool { return r.Where == name })
		if i < 0 {
			rows, i = append(rows, dialsRow{Where: name}), len(rows)
		}
		return &rows[i]
	}
	in := bufio.NewScanner(r)
	for in.Scan() {
		f := strings.Fields(in.Text())
		if len(f) < 3 || f[0] != "===" && f[0] != "---" {
			continue
		}
		name, ok := strings.CutPrefix(f[2], dialsTest+"/")
		if !ok {
			continue
		}
		r := row(strings.ReplaceAll(name, "_", " "))
		switch {
		case f[1] == "PASS:":
			r.OK = true
		case f[1] == "ATTR" && len(f) == 5:
			n, err := strconv.Atoi(f[4])
			if err != nil {
				return err
			}
			switch f[3] {
			case "rounds":
				r.Dials = n
			case "settled_ms":
				r.Settle = float64(n)
			}
		}
	}
	if err := in.Err(); err != nil {
		return err
	}
	if len(rows) == 0 {
		return errors.New("the test has not dialled")
	}
	t := newTable("where", "dials from both ends", "one session each", "settled, at most")
	for _, r := range rows {
		t.add(r.Where, strconv.Itoa(r.Dials), strconv.FormatBool(r.OK), ms(r.Settle))
		w.goal(goal{r.Where + ": one session each", "in 1000 dials", map[bool]string{true: "yes", false: "no"}[r.OK] + ", in " + strconv.Itoa(r.Dials), r.OK && r.Dials >= 1000})
		w.atMost(r.Where+": settled", 1000, r.Settle, r.OK)
	}
	w.add("dials", "Both ends dial at once, in memory, in simulated time", rows, t)
	return nil
}
