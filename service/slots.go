// SPDX-License-Identifier: Apache-2.0

package service

import "slices"

// member is a backend of one frontend, as the tiers see it.
type member struct {
	key    backendKey
	phase  Phase
	weight uint32 // 1 to 100
}

// tiers are the phases that may get new flows, best first.
var tiers = []Phase{PhaseReady, PhaseStarting, PhaseDraining, PhaseUnhealthy}

// active is the phase whose members get the new flows: that of the best tier that has any, or ready
// alone if strict. "" means that nobody does, and the service refuses.
func active(members []member, strict bool) Phase {
	for _, tier := range tiers {
		if slices.ContainsFunc(members, func(b member) bool { return b.phase == tier }) {
			return tier
		}
		if strict {
			break
		}
	}
	return ""
}

// maxReserve is how many the programs look at (LB_TRIES in bpf/src/lb.h).
const maxReserve = 16

// reserve are the ids of the members below the active tier, best tier first: while no active one listens,
// as when a container has only just started, they take new streams.
func reserve(members []member, ids []uint32, phase Phase, strict bool) []uint32 {
	if phase == "" || strict {
		return nil
	}
	var out []uint32
	for _, tier := range tiers[slices.Index(tiers, phase)+1:] {
		out = append(out, slots(members, ids, tier)...)
	}
	out = slices.Compact(out) // in each tier a member's slots lie together
	return out[:min(len(out), maxReserve)]
}

// slots fills the slots of a service with the ids of the members that are in phase, each as often as
// its weight says, in ascending order. ids are those of members, one by one.
func slots(members []member, ids []uint32, phase Phase) []uint32 {
	type share struct{ id, weight uint32 }
	var shares []share
	var sum, div uint32
	for i, b := range members {
		if phase == "" || b.phase != phase {
			continue
		}
		shares = append(shares, share{ids[i], b.weight})
		sum += b.weight
		div = gcd(b.weight, div)
	}
	if len(shares) == 0 {
		return nil
	}
	slices.SortFunc(shares, func(a, b share) int { return int(int64(a.id) - int64(b.id)) })
	shares = shares[:min(len(shares), MaxSlots)]
	sum /= div
	filled := make([]uint32, 0, min(sum, MaxSlots))
	// Beyond the cap every share keeps one slot and the rest are divided by weight.
	spare := uint32(MaxSlots - len(shares))
	for _, s := range shares {
		n := s.weight / div
		if sum > MaxSlots {
			n = 1 + uint32(uint64(spare)*uint64(n)/uint64(sum))
		}
		for range n {
			filled = append(filled, s.id)
		}
	}
	return filled
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
