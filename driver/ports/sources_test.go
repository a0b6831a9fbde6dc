// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSources(t *testing.T) {
	h := newHolder(t)
	every4, every6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	via := netip.MustParseAddrPort("127.0.0.1:9")
	number := unused(t, "tcp")
	p4 := Port{netip.AddrPortFrom(every4, number), "tcp"}
	p6 := Port{netip.AddrPortFrom(every6, number), "tcp"}
	h.Restrict(p4, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")})
	h.Restrict(p6, []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/48")})
	require.NoError(t, h.HoldEvery("tcp", number, via, via))
	admits := func(client string) bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.admits(h.socket(h.held[keyOf(p4.Addr, false)]), netip.MustParseAddr(client))
	}
	for client, want := range map[string]bool{
		"198.51.100.7": true, "::ffff:198.51.100.7": true, "198.51.101.7": false, "203.0.113.1": false,
		"2001:db8:1::7": true, "2001:db8:2::7": false, "fe80::7%eth0": false,
		"127.0.0.1": true, "::1": true, // the host
	} {
		require.Equal(t, want, admits(client), client)
	}
	h.Restrict(p4, nil)
	require.True(t, admits("203.0.113.1"), "everybody again")
	require.False(t, admits("2001:db8:2::7"))
	h.Release(p4)
	h.Release(p6)
	require.Empty(t, h.sources, "released ports have no sources")
}
