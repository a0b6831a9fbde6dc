// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"slices"
	"sort"
)

// span is the addresses from first to last, both included. A span whose last comes before its first
// is empty.
type span struct{ first, last netip.Addr }

func (s span) empty() bool { return s.last.Less(s.first) }

func (s span) contains(a netip.Addr) bool { return !a.Less(s.first) && !s.last.Less(a) }

// intersect returns what s and o have in common.
func (s span) intersect(o span) span {
	if s.first.Less(o.first) {
		s.first = o.first
	}
	if o.last.Less(s.last) {
		s.last = o.last
	}
	return s
}

// size is how many addresses there are, as near as a float64 is.
func (s span) size() float64 {
	if s.empty() {
		return 0
	}
	first, last, size := s.first.As16(), s.last.As16(), 0.0
	for i := range first {
		size = size*256 + float64(last[i]) - float64(first[i])
	}
	return size + 1
}

// spans is a set of addresses, kept as its runs: sorted, apart, and never adjacent. It costs as much
// as there are gaps in it, not as there are addresses in the pool, so that a /64 is as cheap as a /24,
// and the next free address is one binary search away.
type spans struct{ runs []span }

// find returns the index of the first run that ends at a or after it, and whether that run holds a.
func (s *spans) find(a netip.Addr) (int, bool) {
	i := sort.Search(len(s.runs), func(i int) bool { return !s.runs[i].last.Less(a) })
	return i, i < len(s.runs) && !a.Less(s.runs[i].first)
}

func (s *spans) contains(a netip.Addr) bool {
	_, in := s.find(a)
	return in
}

// add puts all addresses of r into the set; r must not be empty.
func (s *spans) add(r span) {
	// Runs i to j overlap r or touch it; one run takes their place. Next and Prev of the ends of the
	// address space are the zero Addr, which equals no run's end.
	i, _ := s.find(r.first)
	if i > 0 && s.runs[i-1].last == r.first.Prev() {
		i--
	}
	j := i
	for ; j < len(s.runs) && (!r.last.Less(s.runs[j].first) || s.runs[j].first == r.last.Next()); j++ {
		if s.runs[j].first.Less(r.first) {
			r.first = s.runs[j].first
		}
		if r.last.Less(s.runs[j].last) {
			r.last = s.runs[j].last
		}
	}
	s.runs = slices.Replace(s.runs, i, j, r)
}

// remove takes one address out of the set.
func (s *spans) remove(a netip.Addr) {
	i, in := s.find(a)
	if !in {
		return
	}
	run := s.runs[i]
	switch {
	case run.first == run.last:
		s.runs = slices.Delete(s.runs, i, i+1)
	case run.first == a:
		s.runs[i].first = a.Next()
	case run.last == a:
		s.runs[i].last = a.Prev()
	default:
		s.runs[i].last = a.Prev()
		s.runs = slices.Insert(s.runs, i+1, span{a.Next(), run.last})
	}
}

// firstFree returns the lowest address of within, at from or after it, that is not in the set.
func (s *spans) firstFree(from netip.Addr, within span) (netip.Addr, bool) {
	if from.Less(within.first) {
		from = within.first
	}
	if i, in := s.find(from); in {
		from = s.runs[i].last.Next()
	}
	return from, from.IsValid() && within.contains(from)
}
