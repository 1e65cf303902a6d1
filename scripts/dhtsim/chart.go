package main

import (
	"fmt"
	"math"
	"strings"
)

// chart is a drawing of curves, or bars, as SVG.
type chart struct {
	Title, Subtitle string
	XTitle, YTitle  string
	XLabels         []label // where the x axis is labelled
	YMin, YMax      float64
	YStep           float64
	Percent         bool // y is a share
	Lines           []line
	Bars            []bar
}

type label struct {
	At   float64
	Text string
}

type line struct {
	Name   string
	Points [][2]float64
	Faint  bool // a reference, dashed
}

// bar is a value, and the least it should be.
type bar struct {
	Name        string
	Value, Goal float64
}

// Sizes in pixels.
const (
	chartWidth, chartHeight = 640, 360
	left, right, top, below = 64, 40, 88, 52
)

var chartColors = []string{"#1f6feb", "#d29922", "#2da44e"}

// svg draws c. It reads well on a light page and on a dark one.
func (c *chart) svg() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	x0, x1 := 0.0, float64(len(c.Bars))
	if len(c.Bars) == 0 {
		x0, x1 = math.Inf(1), math.Inf(-1)
		for _, l := range c.Lines {
			for _, q := range l.Points {
				x0, x1 = min(x0, q[0]), max(x1, q[0])
			}
		}
	}
	x := func(v float64) float64 { return left + (v-x0)/(x1-x0)*(chartWidth-left-right) }
	y := func(v float64) float64 {
		return chartHeight - below - (min(max(v, c.YMin), c.YMax)-c.YMin)/(c.YMax-c.YMin)*(chartHeight-top-below)
	}
	p(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`, chartWidth, chartHeight, c.Title)
	p(`<style>text{font:13px system-ui,sans-serif;fill:#57606a}.t{font-size:17px;font-weight:600;fill:#24292f}` +
		`.g{stroke:#d0d7de;stroke-width:1}.c{fill:none;stroke-width:2.5;stroke-linejoin:round}.r{stroke:#8c959f;stroke-dasharray:5 5;stroke-width:1.5}` +
		`.b{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#8b949e}.t{fill:#e6edf3}.g{stroke:#30363d}.b{fill:#0d1117}}</style>`)
	p(`<rect class="b" width="%d" height="%d" rx="8"/>`, chartWidth, chartHeight)
	p(`<text class="t" x="%d" y="28">%s</text><text x="%d" y="48">%s</text>`, 20, c.Title, 20, c.Subtitle)
	for v := c.YMin; v <= c.YMax+c.YStep/1e6; v += c.YStep {
		text := fmt.Sprintf("%g", v)
		if c.Percent {
			text = fmt.Sprintf("%g %%", math.Round(v*1000)/10)
		}
		p(`<path class="g" d="M%d %.1fH%d"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`,
			left, y(v), chartWidth-right, left-8, y(v)+4, text)
	}
	for _, l := range c.XLabels {
		p(`<text x="%.1f" y="%d" text-anchor="middle">%s</text>`, x(l.At), chartHeight-below+20, l.Text)
	}
	p(`<text x="%d" y="%d" text-anchor="middle">%s</text>`, (left+chartWidth-right)/2, chartHeight-10, c.XTitle)
	if c.YTitle != "" {
		p(`<text transform="translate(16 %d) rotate(-90)" text-anchor="middle">%s</text>`, (top+chartHeight-below)/2, c.YTitle)
	}
	for i, l := range c.Lines {
		class, color := "c", chartColors[i%len(chartColors)]
		if l.Faint {
			class, color = "c r", "#8c959f"
		}
		var d strings.Builder
		for j, q := range l.Points {
			fmt.Fprintf(&d, "%c%.1f %.1f", "ML"[min(j, 1)], x(q[0]), y(q[1]))
		}
		p(`<path class="%s" stroke="%s" d="%s"/>`, class, color, d.String())
		if !l.Faint && len(l.Points) < 20 {
			for _, q := range l.Points {
				p(`<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`, x(q[0]), y(q[1]), color)
			}
		}
		if l.Name != "" {
			last := l.Points[len(l.Points)-1]
			dy := -10.0
			if l.Faint {
				dy = 18
			}
			p(`<text x="%.1f" y="%.1f" text-anchor="end">%s</text>`, x(last[0]), y(last[1])+dy, l.Name)
		}
	}
	for i, v := range c.Bars {
		mid, half := x(float64(i)+.5), x(.3)-x(0)
		p(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="3" fill="%s"/>`,
			mid-half, y(v.Value), 2*half, y(c.YMin)-y(v.Value), chartColors[0])
		p(`<path class="r" d="M%.1f %.1fh%.1f"/>`, mid-half-8, y(v.Goal), 2*half+16)
		p(`<text class="t" x="%.1f" y="%.1f" text-anchor="middle" style="font-size:13px">%.2f %%</text>`, mid, y(v.Value)-7, 100*v.Value)
		p(`<text x="%.1f" y="%d" text-anchor="middle">%s</text>`, mid, chartHeight-below+20, v.Name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
