// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/state"
)

// TestCollect loses the releases of two containers; one of them is still young.
func TestCollect(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	m, err := New(state.Memory(), Options{Now: func() time.Time { return now }, Quarantine: -1})
	require.NoError(t, err)
	pool, err := m.RequestPool(Request{Pool: "10.1.0.0/24"})
	require.NoError(t, err)
	request := func(gateway bool) netip.Addr {
		p, err := m.RequestAddress(pool.ID, netip.Addr{}, AddressOptions{Gateway: gateway})
		require.NoError(t, err)
		return p.Addr()
	}
	request(true)
	old, running := request(false), request(false)
	now = now.Add(2 * time.Minute)
	request(false)

	released, err := m.Collect(pool.Subnet, map[netip.Addr]bool{running: true}, time.Minute)
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{old}, released)
	require.Len(t, m.Leases(pool.ID), 3, "the gateway, the running one and the young one stay")

	released, err = m.Collect(netip.MustParsePrefix("10.2.0.0/24"), nil, time.Minute)
	require.NoError(t, err, "a subnet of another IPAM")
	require.Empty(t, released)
}

// The clock is set back while nobody runs: a lease of the future is as old as the process that finds it.
func TestCollectAfterTheClockWasSetBack(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	store, opts := state.Memory(), Options{Now: func() time.Time { return now }, Quarantine: -1}
	m, err := New(store, opts)
	require.NoError(t, err)
	pool, err := m.RequestPool(Request{Pool: "10.1.0.0/24"})
	require.NoError(t, err)
	_, err = m.RequestAddress(pool.ID, netip.Addr{}, AddressOptions{})
	require.NoError(t, err)

	now = now.Add(-24 * time.Hour)
	m, err = New(store, opts)
	require.NoError(t, err)
	now = now.Add(59 * time.Second)
	require.Empty(t, m.Unused(pool.Subnet, nil, time.Minute))
	now = now.Add(time.Second)
	require.Len(t, m.Unused(pool.Subnet, nil, time.Minute), 1)
}

// TestCollectPools loses the end of a network, and makes another of the same subnet meanwhile.
func TestCollectPools(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	m, err := New(state.Memory(), Options{Now: func() time.Time { return now }})
	require.NoError(t, err)
	request := func(pool, owner string) Pool {
		p, err := m.RequestPool(Request{Pool: pool, Owner: owner})
		require.NoError(t, err)
		return p
	}
	collect := func(kept ...Pool) []netip.Prefix {
		subnets := map[netip.Prefix]bool{}
		for _, p := range kept {
			subnets[p.Subnet] = true
		}
		released, err := m.CollectPools(subnets)
		require.NoError(t, err)
		return released
	}
	lost, known, again := request("10.1.0.0/24", ""), request("10.2.0.0/24", ""), request("10.3.0.0/24", "")
	request("10.4.0.0/24", "a network of CNI")
	require.Empty(t, collect(known), "their networks may be under way")
	require.NoError(t, m.ReleasePool(again.ID))
	now = now.Add(time.Second)
	again = request("10.3.0.0/24", "")
	require.Equal(t, []netip.Prefix{lost.Subnet}, collect(known))
	require.Empty(t, collect(known, again))
	require.Len(t, m.Pools(), 3)
}
