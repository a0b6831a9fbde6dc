// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/mustang-net/mustang/bench/stats"
)

// measurement is what was read.
type measurement struct {
	notes       []string
	series      map[string][]float64
	definitions []definition
}

type definition struct{ name, unit, how, target, baseline string }

// figure is what is printed. Low and High bound the median with 95 % confidence.
type figure struct {
	Name        string    `json:"name"`
	Value       float64   `json:"value"`
	Unit        string    `json:"unit"`
	Target      string    `json:"target,omitempty"`
	Reached     *bool     `json:"reached,omitempty"` // only with a target
	Baseline    string    `json:"baseline,omitempty"`
	Runs        int       `json:"runs"`
	Low         float64   `json:"low"`
	High        float64   `json:"high"`
	Medians     []float64 `json:"medians,omitempty"` // of the two series of a ratio or a difference
	MediansUnit string    `json:"medians_unit,omitempty"`
	noisy       bool      // the target lies within the interval
}

func read(in io.Reader) (*measurement, error) {
	m := &measurement{series: map[string][]float64{}}
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		words := strings.Split(lines.Text(), "\t")
		switch {
		case words[0] == "note" && len(words) == 2:
			m.notes = append(m.notes, words[1])
		case words[0] == "sample" && len(words) == 3:
			v, err := strconv.ParseFloat(words[2], 64)
			if err != nil {
				return nil, fmt.Errorf("line %d: a run of %s gave no number but %q", n, words[1], words[2])
			}
			m.series[words[1]] = append(m.series[words[1]], v)
		case words[0] == "figure" && len(words) == 6:
			m.definitions = append(m.definitions, definition{words[1], words[2], words[3], words[4], words[5]})
		default:
			return nil, fmt.Errorf("line %d: want sample, figure or note: %q", n, lines.Text())
		}
	}
	return m, lines.Err()
}

func (m *measurement) figures() ([]figure, error) {
	out := []figure{}
	known := map[string]float64{}
	for _, d := range m.definitions {
		values, err := m.values(d.how)
		if err != nil {
			return nil, fmt.Errorf("figure %s: %w", d.name, err)
		}
		f := figure{Name: d.name, Unit: d.unit, Target: d.target, Baseline: d.baseline, Runs: len(values)}
		f.Value, f.Low, f.High = stats.MedianInterval(values)
		if words := strings.Fields(d.how); len(words) == 3 {
			f.MediansUnit = d.unit
			for _, series := range words[1:] {
				median, _, _ := stats.MedianInterval(m.series[series])
				f.Medians = append(f.Medians, median)
			}
			if words[0] == "ratio" {
				f.Unit = "ratio"
			}
		}
		if err := f.judge(known); err != nil {
			return nil, fmt.Errorf("figure %s: %w", d.name, err)
		}
		known[f.Name] = f.Value
		out = append(out, f)
	}
	return out, nil
}

// values are the samples that a figure is the median of.
func (m *measurement) values(how string) ([]float64, error) {
	words := strings.Fields(how)
	if len(words) < 2 {
		return nil, fmt.Errorf("%q: want median, ratio or difference, and series", how)
	}
	for _, name := range words[1:] {
		if len(m.series[name]) == 0 {
			return nil, fmt.Errorf("no run of %s", name)
		}
	}
	a := m.series[words[1]]
	if words[0] == "median" && len(words) == 2 {
		return a, nil
	}
	combine, ok := map[string]func(a, b float64) float64{
		"ratio":      func(a, b float64) float64 { return a / b },
		"difference": func(a, b float64) float64 { return a - b },
	}[words[0]]
	if !ok || len(words) != 3 {
		return nil, fmt.Errorf("%q: want median, ratio or difference, and series", how)
	}
	b := m.series[words[2]]
	if len(a) != len(b) {
		return nil, fmt.Errorf("%d runs of %s and %d of %s are no pairs", len(a), words[1], len(b), words[2])
	}
	out := make([]float64, len(a))
	for i := range a {
		out[i] = combine(a[i], b[i])
	}
	return out, nil
}

// judge compares the value with its target; known are the figures before it.
func (f *figure) judge(known map[string]float64) error {
	if f.Target == "" {
		return nil
	}
	var met func(v, limit float64) bool
	text, ok := strings.CutPrefix(f.Target, ">=")
	if ok {
		met = func(v, limit float64) bool { return v >= limit }
	} else if text, ok = strings.CutPrefix(f.Target, "<="); ok {
		met = func(v, limit float64) bool { return v <= limit }
	} else if text, ok = strings.CutPrefix(f.Target, "<"); ok {
		met = func(v, limit float64) bool { return v < limit }
	} else {
		return fmt.Errorf("target %q: want >=, <= or <", f.Target)
	}
	limit, ok := known[text]
	if !ok {
		var err error
		if limit, err = strconv.ParseFloat(text, 64); err != nil {
			return fmt.Errorf("target %q is neither a number nor a figure before it", f.Target)
		}
	}
	reached := met(f.Value, limit)
	f.Reached = &reached
	f.noisy = met(f.Low, limit) != met(f.High, limit)
	return nil
}

// verdict says so when the runs do not settle it.
func (f *figure) verdict() string {
	if f.Reached == nil {
		return "-"
	}
	text := "not reached"
	if *f.Reached {
		text = "reached"
	}
	if f.noisy {
		text += ", within noise"
	}
	return text
}
