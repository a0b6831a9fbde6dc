// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestFree takes numbers on two addresses until there are some: each is free on both, and none comes twice
// while it is held.
func TestFree(t *testing.T) {
	addrs := []netip.Addr{loop4, loop6}
	for _, protocol := range []string{"tcp", "udp"} {
		h := newHolder(t)
		seen := map[uint16]bool{}
		for range 100 {
			number, err := h.Free(protocol, addrs)
			require.NoError(t, err)
			assert.False(t, seen[number], "%d came twice", number)
			seen[number] = true
			for _, a := range addrs {
				require.NoError(t, h.Hold(Port{netip.AddrPortFrom(a, number), protocol}, netip.AddrPort{}))
			}
		}
	}
}

// TestFreeOnEveryAddress has a number taken on the last address only.
func TestFreeOnEveryAddress(t *testing.T) {
	taken, err := net.Listen("tcp", "[::1]:0")
	require.NoError(t, err)
	defer taken.Close()
	h := newHolder(t)
	for range 200 {
		number, err := h.Free("tcp", []netip.Addr{loop4, loop6})
		require.NoError(t, err)
		assert.NotEqual(t, uint16(taken.Addr().(*net.TCPAddr).Port), number)
	}
}

func TestFreeOfNoHost(t *testing.T) {
	_, err := newHolder(t).Free("tcp", []netip.Addr{netip.MustParseAddr("fe80::1")})
	assert.ErrorContains(t, err, "find a free tcp port on [fe80::1]")
}
