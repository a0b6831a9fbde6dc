// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/mustang-net/mustang/bench/stats"
)

// candidate is a mode that mustang can be told to use.
type candidate struct {
	variant
	stream, latency Row // by the VIP
}

// Recommendation says in one sentence which mode to use, "" if no VIP was measured. What counts is the VIP, by which
// services are reached: its throughput and its latency, as parts of the best of each, equally.
func (r Result) Recommendation() string {
	all := r.candidates()
	if len(all) == 0 {
		return ""
	}
	best := slices.MaxFunc(all, func(a, b candidate) int { return cmp.Compare(a.score(all), b.score(all)) })
	// of those that are as good as the best, the first in the driver's order, which is the simplest
	var alike []candidate
	for _, c := range all {
		if c.within(best) {
			alike = append(alike, c)
		}
	}
	use := alike[0]
	text := fmt.Sprintf("On this machine use %s: by a VIP it carries %s Gbit/s and takes %s us a turn (median)",
		use.options(), digits(use.stream.Value), digits(use.latency.Value))
	switch names := namesOf(alike[1:], best); {
	case len(all) == 1:
		text += "; nothing else was measured"
	case use.stream.Runs < stats.SureRuns:
		text += fmt.Sprintf("; what is noise cannot be told from fewer than %d runs", stats.SureRuns)
	case len(names) > 0:
		text += "; the difference to " + strings.Join(names, ", ") + " is within noise"
	default:
		text += "; every other is behind it by more than noise"
	}
	return text + "."
}

// candidates are the modes of ours by a VIP, those with eBPF if there are any.
func (r Result) candidates() []candidate {
	var with, without []candidate
	for _, v := range r.variants() {
		stream, ok := r.find(v, pathVIP, streamRate)
		latency, okToo := r.find(v, pathVIP, tcpP50)
		if !ok || !okToo || !slices.Contains(Modes(), v.mode) {
			continue
		}
		c := candidate{v, stream, latency}
		if v.ebpf {
			with = append(with, c)
		} else {
			without = append(without, c)
		}
	}
	if len(with) > 0 {
		return with
	}
	return without
}

// score is 1 for what is best in both.
func (c candidate) score(all []candidate) float64 {
	stream, latency := 0.0, math.Inf(1)
	for _, o := range all {
		stream, latency = max(stream, o.stream.Value), min(latency, o.latency.Value)
	}
	return math.Sqrt(c.stream.Value / stream * latency / c.latency.Value)
}

// within tells whether both intervals of c reach the best's.
func (c candidate) within(best candidate) bool {
	return c.stream.High >= best.stream.Low && c.latency.Low <= best.latency.High
}

// namesOf lists those that are as good, and says which of them measured best.
func namesOf(alike []candidate, best candidate) []string {
	var out []string
	for _, c := range alike {
		name := c.String()
		if c.variant == best.variant {
			name += " (which measured best)"
		}
		out = append(out, name)
	}
	return out
}

// options are what to give to `docker network create --opt`.
func (c candidate) options() string {
	o := variants()[c.mode]
	text := "mode=" + o["mode"]
	if l := o["ipvlan_mode"]; l != "" {
		text += " with ipvlan_mode=" + l
	}
	if !c.ebpf {
		text += " (plain, as eBPF was not measured)"
	}
	return text
}
