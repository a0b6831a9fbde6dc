// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/ipam"
	"github.com/mustang-net/mustang/state"
)

func TestRequestPoolRefuses(t *testing.T) {
	routes := prefixes("0.0.0.0/0", "0.0.0.0/1", "::/0", "192.168.1.0/24", "172.16.5.0/24", "fd77::/64")
	tests := []struct {
		name string
		req  ipam.Request
		kind error
		says []string
	}{
		{"no prefix", ipam.Request{Pool: "10.7.0.0"}, ipam.ErrInvalid, []string{`"10.7.0.0"`, "want address/bits"}},
		{"garbage", ipam.Request{Pool: "a/b"}, ipam.ErrInvalid, []string{`"a/b"`}},
		{"host bits", ipam.Request{Pool: "10.7.0.5/24"}, ipam.ErrInvalid, []string{"10.7.0.5/24", "did you mean 10.7.0.0/24"}},
		{"too long", ipam.Request{Pool: "10.7.0.0/33"}, ipam.ErrInvalid, nil},
		{"zone", ipam.Request{Pool: "fd00::%eth0/64", IPv6: true}, ipam.ErrInvalid, nil},
		{"family", ipam.Request{Pool: "10.7.0.0/24", IPv6: true}, ipam.ErrInvalid, []string{"family"}},
		{"family 6", ipam.Request{Pool: "fd00::/64"}, ipam.ErrInvalid, []string{"family"}},
		{"loopback", ipam.Request{Pool: "127.5.0.0/24"}, ipam.ErrInvalid, []string{"127.0.0.0/8"}},
		{"everything", ipam.Request{Pool: "0.0.0.0/0"}, ipam.ErrInvalid, nil},
		{"multicast", ipam.Request{Pool: "239.0.0.0/24"}, ipam.ErrInvalid, nil},
		{"link-local", ipam.Request{Pool: "fe80::/64", IPv6: true}, ipam.ErrInvalid, nil},
		{"mapped", ipam.Request{Pool: "::ffff:10.0.0.0/120", IPv6: true}, ipam.ErrInvalid, nil},
		{"space", ipam.Request{Space: "a|b", Pool: "10.7.0.0/24"}, ipam.ErrInvalid, []string{`"a|b"`}},
		{"sub-pool alone", ipam.Request{SubPool: "10.7.0.0/25"}, ipam.ErrInvalid, []string{"give the subnet too"}},
		{"sub-pool outside", ipam.Request{Pool: "10.7.0.0/24", SubPool: "10.8.0.0/25"}, ipam.ErrInvalid, []string{"10.8.0.0/25", "10.7.0.0/24"}},
		{"sub-pool larger", ipam.Request{Pool: "10.7.0.0/24", SubPool: "10.7.0.0/23"}, ipam.ErrInvalid, nil},
		{"sub-pool unusable", ipam.Request{Pool: "10.7.0.0/24", SubPool: "10.7.0.255/32"}, ipam.ErrInvalid, []string{"broadcast"}},
		{"bounds alone", ipam.Request{First: addr("10.7.0.5")}, ipam.ErrInvalid, []string{"give the subnet too"}},
		{"bounds outside", ipam.Request{Pool: "10.7.0.0/24", Last: addr("10.8.0.5")}, ipam.ErrInvalid, []string{"10.8.0.5 is not inside of the subnet 10.7.0.0/24: choose one in it"}},
		{"bounds the wrong way", ipam.Request{Pool: "10.7.0.0/24", First: addr("10.7.0.9"), Last: addr("10.7.0.5")}, ipam.ErrInvalid, []string{"it ends at 10.7.0.5, before it begins at 10.7.0.9: give the lower address first"}},
		{"bounds unusable", ipam.Request{Pool: "10.7.0.0/24", First: addr("10.7.0.255")}, ipam.ErrInvalid, []string{"from 10.7.0.255", "broadcast"}},
		{"same pool", ipam.Request{Pool: "10.5.0.0/24"}, ipam.ErrOverlap, []string{"10.5.0.0/24", "choose another subnet"}},
		{"same pool, other space", ipam.Request{Space: "other", Pool: "10.5.0.0/24"}, ipam.ErrOverlap, nil},
		{"inside a pool", ipam.Request{Pool: "10.5.0.128/25"}, ipam.ErrOverlap, []string{"10.5.0.128/25", "mustang-local/10.5.0.0/24"}},
		{"around a pool", ipam.Request{Pool: "10.4.0.0/15"}, ipam.ErrOverlap, []string{"mustang-local/10.5.0.0/24"}},
		{"pool, routes ignored", ipam.Request{Pool: "10.5.0.0/24", IgnoreHostRoutes: true}, ipam.ErrOverlap, nil},
		{"host route", ipam.Request{Pool: "192.168.0.0/16"}, ipam.ErrOverlap, []string{"192.168.0.0/16", "192.168.1.0/24", "or remove the route"}},
		{"host route 6", ipam.Request{Pool: "fd77::/80", IPv6: true}, ipam.ErrOverlap, []string{"fd77::/80", "fd77::/64"}},
		{"service pool", ipam.Request{Pool: "10.96.4.0/24"}, ipam.ErrOverlap, []string{"10.96.4.0/24", "10.96.0.0/16", "service pool"}},
		{"service pool, routes ignored", ipam.Request{Pool: "10.96.4.0/24", IgnoreHostRoutes: true}, ipam.ErrOverlap, nil},
		{"another owner", ipam.Request{Pool: "10.6.0.0/24", Owner: "blue"}, ipam.ErrOverlap, []string{"of red"}},
		{"another sub-pool", ipam.Request{Pool: "10.6.0.0/24", SubPool: "10.6.0.0/25", Owner: "red"}, ipam.ErrOverlap, nil},
	}
	store := state.Memory()
	i := newIPAM(t, store, ipam.Options{
		HostRoutes: func() ([]netip.Prefix, error) { return routes, nil },
		Reserved:   prefixes("10.96.0.0/16"),
	})
	pool(t, i, "10.5.0.0/24")
	_, err := i.RequestPool(ipam.Request{Pool: "10.6.0.0/24", Owner: "red"})
	require.NoError(t, err)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := i.RequestPool(tt.req)
			require.ErrorIs(t, err, tt.kind)
			for _, part := range tt.says {
				require.ErrorContains(t, err, part)
			}
		})
	}
	require.Len(t, i.Pools(), 2)
}

func TestSameOwnerGetsTheSamePool(t *testing.T) {
	i := newIPAM(t, state.Memory(), ipam.Options{})
	for _, req := range []ipam.Request{
		{Owner: "net"},
		{Owner: "net", IPv6: true},
		{Owner: "net", Pool: "10.6.0.0/24", SubPool: "10.6.0.0/25"},
		{Owner: "net", Pool: "10.7.0.0/24", First: addr("10.7.0.5"), Last: addr("10.7.0.9")},
	} {
		first, err := i.RequestPool(req)
		require.NoError(t, err)
		again, err := i.RequestPool(req)
		require.NoError(t, err)
		require.Equal(t, first, again)
	}
	require.Len(t, i.Pools(), 4)
}

func TestPoolOnTheParentsLAN(t *testing.T) {
	i := newIPAM(t, state.Memory(), ipam.Options{
		HostRoutes: func() ([]netip.Prefix, error) { return prefixes("192.168.1.0/24"), nil },
	})
	_, err := i.RequestPool(ipam.Request{Pool: "192.168.1.0/24", IgnoreHostRoutes: true})
	require.NoError(t, err)
}

func TestDefaultPools(t *testing.T) {
	i := newIPAM(t, state.Memory(), ipam.Options{})
	four, err := i.RequestPool(ipam.Request{})
	require.NoError(t, err)
	require.Equal(t, "mustang-local/10.201.0.0/24", four.ID)
	six, err := i.RequestPool(ipam.Request{IPv6: true})
	require.NoError(t, err)
	require.Equal(t, netip.MustParsePrefix("fd6d:7374:c0de::/64"), six.Subnet)
	next, err := i.RequestPool(ipam.Request{Space: "lan"})
	require.NoError(t, err)
	require.Equal(t, "lan/10.201.1.0/24", next.ID)
	require.NoError(t, i.ReleasePool(four.ID))
	again, err := i.RequestPool(ipam.Request{})
	require.NoError(t, err)
	require.Equal(t, four.ID, again.ID)
}

// The engine holds on to a block that it finds unfit and asks for the next, until it gets an error.
func TestDefaultBlocksComeToAnEnd(t *testing.T) {
	store := state.Memory()
	i := newIPAM(t, store, ipam.Options{
		DefaultPools: prefixes("10.1.0.0/22", "10.2.0.0/23"),
		HostRoutes:   func() ([]netip.Prefix, error) { return prefixes("0.0.0.0/0", "10.1.1.128/25", "10.2.1.0/24"), nil },
		Reserved:     prefixes("10.1.3.0/24"),
	})
	var got []string
	for {
		p, err := i.RequestPool(ipam.Request{})
		if err != nil {
			require.ErrorIs(t, err, ipam.ErrExhausted)
			require.ErrorContains(t, err, "10.1.0.0/22 (4 blocks of /24, 2 overlapped by pools)")
			break
		}
		got = append(got, p.Subnet.String())
		require.Less(t, len(got), 10)
	}
	require.Equal(t, []string{"10.1.0.0/24", "10.1.2.0/24", "10.2.0.0/24"}, got)
	_, err := i.RequestPool(ipam.Request{IPv6: true})
	require.ErrorIs(t, err, ipam.ErrExhausted)
	require.ErrorContains(t, err, "no default pool is configured for IPv6")
	for _, p := range i.Pools() {
		require.NoError(t, i.ReleasePool(p.ID))
	}
	requireEmpty(t, store)
}

func TestDefaultBlockIsFoundInAHugePool(t *testing.T) {
	i := newIPAM(t, state.Memory(), ipam.Options{
		DefaultPools: prefixes("fd00::/8"),
		HostRoutes: func() ([]netip.Prefix, error) {
			return prefixes("fd00::/9", "fd80::/10", "fdc0::/120", "fdc0:0:0:1::/64"), nil
		},
	})
	p, err := i.RequestPool(ipam.Request{IPv6: true})
	require.NoError(t, err)
	require.Equal(t, netip.MustParsePrefix("fdc0:0:0:2::/64"), p.Subnet)
}

func TestDefaultPoolsAtTheEndOfTheAddressSpace(t *testing.T) {
	i := newIPAM(t, state.Memory(), ipam.Options{
		DefaultPools: prefixes("223.255.255.0/24"), DefaultSize4: 24,
		HostRoutes: func() ([]netip.Prefix, error) { return prefixes("128.0.0.0/2", "192.0.0.0/2"), nil },
	})
	_, err := i.RequestPool(ipam.Request{})
	require.ErrorIs(t, err, ipam.ErrExhausted)
}

func TestRoutesThatCannotBeRead(t *testing.T) {
	errRoutes := errors.New("netlink: permission denied")
	i := newIPAM(t, state.Memory(), ipam.Options{HostRoutes: func() ([]netip.Prefix, error) { return nil, errRoutes }})
	_, err := i.RequestPool(ipam.Request{})
	require.ErrorIs(t, err, errRoutes)
	require.Empty(t, i.Pools())
}

func FuzzRequestPool(f *testing.F) {
	for _, seed := range [][3]string{
		{"", "", ""}, {"mustang-local", "10.0.0.0/8", "10.1.0.0/16"}, {"x", "fd00::/64", "fd00::/65"},
		{"a/b", "10.0.0.0/32", "10.0.0.0/32"}, {"s", "::/0", ""}, {"s", "255.255.255.254/31", ""},
		{"s", "192.0.0.0/2", "223.255.255.255/32"}, {"s", "1.2.3.4/31", "1.2.3.5/32"}, {"s", "::1:0:0/127", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], false)
		f.Add(seed[0], seed[1], seed[2], true)
	}
	f.Fuzz(func(t *testing.T, space, subnet, sub string, six bool) {
		store := state.Memory()
		i := newIPAM(t, store, ipam.Options{})
		p, err := i.RequestPool(ipam.Request{Space: space, Pool: subnet, SubPool: sub, IPv6: six})
		if err != nil {
			require.True(t, errors.Is(err, ipam.ErrInvalid), "%v", err)
			require.Empty(t, i.Pools())
			return
		}
		require.Equal(t, six, p.Subnet.Addr().Is6())
		require.Equal(t, p.Subnet, p.Subnet.Masked())
		got := lease(t, i, p.ID)
		require.True(t, p.Subnet.Contains(got))
		if p.SubPool.IsValid() {
			require.True(t, p.SubPool.Contains(got))
		}
		// What was accepted can be loaded again.
		require.Equal(t, i.Leases(p.ID), newIPAM(t, store, ipam.Options{}).Leases(p.ID))
		require.NoError(t, i.ReleasePool(p.ID))
		requireEmpty(t, store)
	})
}

// Who names no address gets one between the bounds, others and the gateway may have any; a start finds them again.
func TestBounds(t *testing.T) {
	store := state.Memory()
	i := newIPAM(t, store, ipam.Options{Quarantine: -1})
	p, err := i.RequestPool(ipam.Request{Owner: "net", Pool: "10.7.0.0/24", First: addr("10.7.0.5"), Last: addr("10.7.0.6")})
	require.NoError(t, err)
	take := func(want, ask string, opts ipam.AddressOptions) {
		t.Helper()
		var a netip.Addr
		if ask != "" {
			a = addr(ask)
		}
		got, err := i.RequestAddress(p.ID, a, opts)
		require.NoError(t, err)
		require.Equal(t, want, got.String())
	}
	take("10.7.0.1/24", "10.7.0.1", ipam.AddressOptions{Gateway: true})
	take("10.7.0.77/24", "10.7.0.77", ipam.AddressOptions{Owner: "asks"})
	take("10.7.0.5/24", "", ipam.AddressOptions{Owner: "one"})
	i = newIPAM(t, store, ipam.Options{Quarantine: -1})
	require.False(t, i.Pools()[0].Full)
	take("10.7.0.6/24", "", ipam.AddressOptions{Owner: "two"})
	require.True(t, i.Pools()[0].Full)
	require.Equal(t, 1.0, i.Pools()[0].Used())
	_, err = i.RequestAddress(p.ID, netip.Addr{}, ipam.AddressOptions{Owner: "three"})
	require.ErrorIs(t, err, ipam.ErrExhausted)
	require.NoError(t, i.ReleaseOwner(p.ID, "one"))
	take("10.7.0.5/24", "", ipam.AddressOptions{Owner: "three"})
}
