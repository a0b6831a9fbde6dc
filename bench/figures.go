// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"slices"

	"github.com/mustang-net/mustang/bench/stats"
)

// metrics in the order of printing.
var metrics = []string{streamRate, cpuPerGB, tcpRate, tcpP50, tcpP99, udpP50, udpP99, connectRate}

// ratioSuffix marks ratios, of which more than one is better.
const ratioSuffix = "_ratio"

// figures makes rows of values: medians, and ratios of what was measured side by side.
func figures(values series) []Row {
	var out []Row
	for _, s := range sorted(values) {
		for _, metric := range metrics {
			if v := values[s][metric]; len(v) > 0 {
				out = append(out, s.row(metric, units[metric], v))
			}
		}
	}
	for _, s := range sorted(values) {
		for _, c := range s.comparisons() {
			for _, metric := range []string{streamRate, tcpRate, connectRate} {
				if v := ratios(values[s][metric], values[c.base][metric]); len(v) > 0 {
					r := s.row(metric+ratioSuffix, "ratio", v)
					r.Against = c.name
					out = append(out, r)
				}
			}
		}
	}
	return out
}

func (s side) row(metric, unit string, values []float64) Row {
	r := Row{
		Mode: s.Mode, EBPF: s.EBPF, Path: s.Path, Via: s.Via, Metric: metric, Unit: unit, Runs: len(values), Services: s.Services,
	}
	r.Value, r.Low, r.High = stats.MedianInterval(values)
	return r
}

type comparison struct {
	name string
	base side
}

// comparisons are what a side is set against.
func (s side) comparisons() []comparison {
	if s.Services > 0 {
		one := s
		one.Services = 1
		return []comparison{{"1 service", one}}[:min(1, s.Services-1)]
	}
	var out []comparison
	if s.Path == pathVIP {
		out = append(out, comparison{"direct", side{Mode: s.Mode, EBPF: s.EBPF, Path: pathDirect}})
	}
	if s.EBPF {
		plain := side{Mode: s.Mode, Path: s.Path}
		if s.Path == pathVIP {
			plain.Via = viaNftables
		}
		out = append(out, comparison{"plain", plain})
	}
	if s.EBPF && s.Path == pathDirect && s.Mode != "macvlan" {
		out = append(out, comparison{"plain macvlan", side{Mode: "macvlan", Path: pathDirect}})
	}
	return out
}

// ratios pairs the n-th value of one side with the n-th of the other.
func ratios(a, b []float64) []float64 {
	var out []float64
	for i := range min(len(a), len(b)) {
		out = append(out, a[i]/b[i])
	}
	return out
}

// sorted lists the sides in the order of printing.
func sorted(values series) []side {
	order := append(append([]string{modeLoopback}, Modes()...), dockerModes()...)
	var out []side
	for s := range values {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b side) int {
		return cmp.Or(
			cmp.Compare(a.Services, b.Services),
			cmp.Compare(slices.Index(order, a.Mode), slices.Index(order, b.Mode)),
			cmp.Compare(number(a.EBPF), number(b.EBPF)),
			cmp.Compare(a.Path, b.Path),
			cmp.Compare(b.Via, a.Via), // nftables before iptables
		)
	})
	return out
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}
