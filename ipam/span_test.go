// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// A set of runs answers as a set of single addresses does, at both ends of the address space too.
func TestSpansAgreeWithASetOfAddresses(t *testing.T) {
	for _, base := range []string{"0.0.0.0/27", "255.255.255.224/27", "::/123", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffe0/123"} {
		p := netip.MustParsePrefix(base)
		var all []netip.Addr
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			all = append(all, a)
		}
		within := span{all[0], all[len(all)-1]}
		require.Equal(t, within.last, lastAddr(p))
		rnd := rand.New(rand.NewPCG(1, 2))
		var s spans
		model := map[netip.Addr]bool{}
		for range 3000 {
			from := rnd.IntN(len(all))
			if rnd.IntN(2) == 0 {
				s.remove(all[from])
				delete(model, all[from])
			} else {
				to := min(from+rnd.IntN(4), len(all)-1)
				s.add(span{all[from], all[to]})
				for _, a := range all[from : to+1] {
					model[a] = true
				}
			}
			for _, a := range all {
				require.Equal(t, model[a], s.contains(a), "%s in %v", a, s.runs)
			}
			for k := 1; k < len(s.runs); k++ {
				require.True(t, s.runs[k-1].last.Next().Less(s.runs[k].first), "apart: %v", s.runs)
			}
			start := rnd.IntN(len(all))
			var want netip.Addr
			for _, a := range all[start:] {
				if !model[a] {
					want = a
					break
				}
			}
			got, found := s.firstFree(all[start], within)
			require.Equal(t, want.IsValid(), found)
			if found {
				require.Equal(t, want, got)
			}
		}
	}
}

func TestAssignable(t *testing.T) {
	for subnet, want := range map[string][2]string{
		"10.0.0.0/24": {"10.0.0.1", "10.0.0.254"},
		"10.0.0.0/31": {"10.0.0.0", "10.0.0.1"},
		"10.0.0.3/32": {"10.0.0.3", "10.0.0.3"},
		"fd00::/64":   {"fd00::1", "fd00::ffff:ffff:ffff:ffff"},
		"fd00::/127":  {"fd00::", "fd00::1"},
	} {
		require.Equal(t, span{netip.MustParseAddr(want[0]), netip.MustParseAddr(want[1])},
			assignable(netip.MustParsePrefix(subnet)), subnet)
	}
}
