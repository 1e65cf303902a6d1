//go:build linux

package main

import (
	"bytes"
	"fmt"
	"html"
	"slices"
)

const (
	cellWidth, cellHeight = 62, 30
	headWidth, headHeight = 96, 74
	panelGap              = 28
)

// svg draws the matrix, a square for each pair of programs: rows are the server's NAT, columns the client's.
func (o *output) svg() []byte {
	rows, _ := o.parts["matrix"].([]row)
	var combos [][2]string
	for _, r := range rows {
		if c := [2]string{r.ClientImpl, r.ServerImpl}; !slices.Contains(combos, c) {
			combos = append(combos, c)
		}
	}
	names := map[string]string{"go": "omegatun", "js": "npm hyperdht"}
	panelWidth := headWidth + len(profiles)*cellWidth
	panelHeight := headHeight + (len(profiles)+len(special))*cellHeight + panelGap
	columns := min(2, max(1, len(combos)))
	lines := (len(combos) + columns - 1) / columns
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n",
		columns*(panelWidth+panelGap)+panelGap, lines*(panelHeight+panelGap)+panelGap)
	fmt.Fprintln(&b, `<rect width="100%" height="100%" fill="white"/>`)
	for i, c := range combos {
		x, y := panelGap+i%columns*(panelWidth+panelGap), panelGap+i/columns*(panelHeight+panelGap)
		fmt.Fprintf(&b, `<g transform="translate(%d %d)">`+"\n", x, y)
		fmt.Fprintf(&b, `<text x="0" y="0" font-size="14" font-weight="bold">%s dials %s</text>`+"\n", names[c[0]], names[c[1]])
		fmt.Fprintln(&b, `<text x="0" y="16" fill="#666">median ms from dialling to the first authenticated byte; below: direct after, if it began relayed</text>`)
		for j, p := range profiles {
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle" fill="#333">%s</text>`+"\n", headWidth+j*cellWidth+cellWidth/2, headHeight-6, p.name)
		}
		for j, s := range profiles {
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end" fill="#333">%s</text>`+"\n", headWidth-6, headHeight+j*cellHeight+19, s.name)
			for k, p := range profiles {
				cell(&b, rows, c, s.name, p.name, headWidth+k*cellWidth, headHeight+j*cellHeight)
			}
		}
		for j, s := range special {
			top := headHeight + (len(profiles)+j)*cellHeight + panelGap/2
			cell(&b, rows, c, s.name, "", headWidth, top)
			fmt.Fprintf(&b, `<text x="%d" y="%d" fill="#333">%s: %s</text>`+"\n", headWidth+cellWidth+8, top+19, s.name, html.EscapeString(s.about))
		}
		fmt.Fprintln(&b, "</g>")
	}
	fmt.Fprintln(&b, "</svg>")
	return b.Bytes()
}

// cell draws one result: green direct, blue on the LAN, yellow relayed, red if a try failed that could have connected.
func cell(b *bytes.Buffer, rows []row, combo [2]string, server, client string, x, y int) {
	i := slices.IndexFunc(rows, func(r row) bool {
		return r.Server == server && r.Client == client && r.ClientImpl == combo[0] && r.ServerImpl == combo[1]
	})
	if i < 0 {
		return
	}
	r := rows[i]
	fill := map[string]string{"direct": "#d5f0d5", "lan": "#d5e4fa", "relay": "#fdf3c8", "": "#eeeeee"}[firstWord(r.Paths)]
	text, below := "–", ""
	if m, ok := quantile(r.MS, 0.5); ok {
		text = fmt.Sprintf("%.0f", m)
	}
	if d, ok := quantile(r.Direct, 0.5); ok {
		below = fmt.Sprintf("direct %.1f s", d/1000)
	}
	if r.Connected < r.Tries && r.Want != "none" {
		fill, below = "#f7c9c6", fmt.Sprintf("%d of %d", r.Connected, r.Tries)
	} else if r.Want == "none" {
		text, below = "no UDP", ""
	}
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s" stroke="white"/>`+"\n", x, y, cellWidth, cellHeight, fill)
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", x+cellWidth/2, y+13, text)
	if below != "" {
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle" font-size="9" fill="#555">%s</text>`+"\n", x+cellWidth/2, y+25, below)
	}
}

func firstWord(s string) string {
	for i, r := range s {
		if r == ' ' || r == ',' {
			return s[:i]
		}
	}
	return s
}
