// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/ipam"
	"github.com/mustang-net/mustang/state"
)

var netipValues = cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})

// clock is a clock that tests turn.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time          { return c.now }
func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }

func newIPAM(t testing.TB, store state.Store, opts ipam.Options) *ipam.IPAM {
	t.Helper()
	i, err := ipam.New(store, opts)
	require.NoError(t, err)
	return i
}

// pool requests an explicit pool, given as SUBNET or SUBNET and SUBPOOL.
func pool(t testing.TB, i *ipam.IPAM, subnet string, sub ...string) string {
	t.Helper()
	req := ipam.Request{Pool: subnet, IPv6: netip.MustParsePrefix(subnet).Addr().Is6()}
	if len(sub) > 0 {
		req.SubPool = sub[0]
	}
	p, err := i.RequestPool(req)
	require.NoError(t, err)
	return p.ID
}

// lease requests any address.
func lease(t testing.TB, i *ipam.IPAM, id string) netip.Addr {
	t.Helper()
	got, err := i.RequestAddress(id, netip.Addr{}, ipam.AddressOptions{})
	require.NoError(t, err)
	return got.Addr()
}

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, text := range texts {
		ps = append(ps, netip.MustParsePrefix(text))
	}
	return ps
}

// requireEmpty asserts that the store holds no record of ours any more.
func requireEmpty(t testing.TB, store state.Store) {
	t.Helper()
	require.NoError(t, store.View(func(tx state.Tx) error {
		for _, bucket := range []string{"ipam.pools", "ipam.leases", "ipam.quarantine"} {
			if err := tx.Each(bucket, func(key string, _ func(any) error) error {
				t.Errorf("record left behind: %s %s", bucket, key)
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	}))
}

func TestOptionsAreChecked(t *testing.T) {
	for name, opts := range map[string]ipam.Options{
		"block larger than its pool": {DefaultPools: prefixes("10.0.0.0/25")},
		"host bits":                  {DefaultPools: prefixes("10.0.0.1/16")},
		"loopback":                   {DefaultPools: prefixes("127.0.0.0/8")},
		"no prefix":                  {DefaultPools: []netip.Prefix{{}}},
		"size":                       {DefaultSize4: 33},
		"reserved":                   {Reserved: []netip.Prefix{{}}},
	} {
		_, err := ipam.New(state.Memory(), opts)
		require.ErrorIs(t, err, ipam.ErrInvalid, name)
	}
}

func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	c := newClock()
	opts := ipam.Options{Now: c.Now, BootID: "boot-1"}
	open := func() (state.Store, *ipam.IPAM) {
		store, err := state.Open(path, state.Options{})
		require.NoError(t, err)
		t.Cleanup(func() { _ = store.Close() })
		return store, newIPAM(t, store, opts)
	}
	store, before := open()
	auto, err := before.RequestPool(ipam.Request{})
	require.NoError(t, err)
	id := pool(t, before, "10.9.0.0/24", "10.9.0.128/25")
	six := pool(t, before, "fd00:1::/64")
	_, err = before.RequestAddress(id, addr("10.9.0.1"), ipam.AddressOptions{Gateway: true})
	require.NoError(t, err)
	_, err = before.RequestAddress(id, netip.Addr{}, ipam.AddressOptions{Owner: "web"})
	require.NoError(t, err)
	resting := lease(t, before, id)
	lease(t, before, six)
	require.NoError(t, before.ReleaseAddress(id, resting))
	wantPools, wantLeases := before.Pools(), before.Leases(id)
	require.NoError(t, store.Close()) // nothing else is told of the end, as with kill -9

	store, after := open()
	require.Empty(t, cmp.Diff(wantPools, after.Pools(), netipValues))
	require.Empty(t, cmp.Diff(wantLeases, after.Leases(id), netipValues))
	require.Equal(t, []ipam.Lease{
		{PoolID: id, Address: netip.MustParsePrefix("10.9.0.1/24"), Gateway: true, Since: c.now, BootID: "boot-1"},
		{PoolID: id, Address: netip.MustParsePrefix("10.9.0.128/24"), Owner: "web", Since: c.now, BootID: "boot-1"},
	}, after.Leases(id))
	require.Equal(t, addr("10.9.0.130"), lease(t, after, id), "cursor and quarantine survive")
	for _, p := range []string{auto.ID, id, six} {
		require.NoError(t, after.ReleasePool(p))
		require.NoError(t, after.ReleasePool(p))
	}
	require.Empty(t, after.Pools())
	requireEmpty(t, store)
}

func TestNewRefusesOrphans(t *testing.T) {
	store := state.Memory()
	require.NoError(t, store.Update(func(tx state.Tx) error {
		return tx.Put("ipam.leases", "mustang-local/10.0.0.0/24|10.0.0.2", map[string]any{})
	}))
	_, err := ipam.New(store, ipam.Options{})
	require.ErrorContains(t, err, "belongs to no pool")
}

// failing is a store whose disk is full from time to time.
type failing struct {
	state.Store
	full bool
}

var errFull = errors.New("no space left on device")

func (f *failing) Update(fn func(state.Tx) error) error {
	return f.Store.Update(func(tx state.Tx) error {
		if err := fn(tx); err != nil || !f.full {
			return err
		}
		return errFull
	})
}

func TestWhatWasNotStoredDidNotHappen(t *testing.T) {
	store := &failing{Store: state.Memory()}
	c := newClock()
	i := newIPAM(t, store, ipam.Options{Now: c.Now})
	id := pool(t, i, "10.0.0.0/29")
	first := lease(t, i, id)
	require.NoError(t, i.ReleaseAddress(id, first))
	held := lease(t, i, id)
	c.advance(time.Minute) // the quarantine's record is due for deletion

	store.full = true
	pools, leases := i.Pools(), i.Leases(id)
	_, err := i.RequestPool(ipam.Request{})
	require.ErrorIs(t, err, errFull)
	_, err = i.RequestAddress(id, netip.Addr{}, ipam.AddressOptions{})
	require.ErrorIs(t, err, errFull)
	require.ErrorIs(t, i.ReleaseAddress(id, held), errFull)
	require.ErrorIs(t, i.ReleasePool(id), errFull)
	require.Empty(t, cmp.Diff(pools, i.Pools(), netipValues))
	require.Empty(t, cmp.Diff(leases, i.Leases(id), netipValues))

	store.full = false
	require.Equal(t, held.Next(), lease(t, i, id), "the failed request did not move on")
	require.NoError(t, i.ReleasePool(id))
	requireEmpty(t, store)
}

func TestListings(t *testing.T) {
	c := newClock()
	i := newIPAM(t, state.Memory(), ipam.Options{Now: c.Now, BootID: "b"})
	high := pool(t, i, "10.2.0.0/24")
	low := pool(t, i, "10.1.0.0/24", "10.1.0.64/26")
	_, err := i.RequestAddress(low, addr("10.1.0.9"), ipam.AddressOptions{Owner: "web"})
	require.NoError(t, err)
	require.Empty(t, cmp.Diff([]ipam.Pool{
		{ID: low, Space: ipam.DefaultSpace, Subnet: netip.MustParsePrefix("10.1.0.0/24"),
			SubPool: netip.MustParsePrefix("10.1.0.64/26"), Since: c.now, BootID: "b", Leases: 1},
		{ID: high, Space: ipam.DefaultSpace, Subnet: netip.MustParsePrefix("10.2.0.0/24"), Since: c.now, BootID: "b"},
	}, i.Pools(), netipValues))
	want := ipam.Lease{PoolID: low, Address: netip.MustParsePrefix("10.1.0.9/24"), Owner: "web", Since: c.now, BootID: "b"}
	for _, a := range []string{"10.1.0.9", "::ffff:10.1.0.9"} {
		got, found := i.Lookup(addr(a))
		require.True(t, found, a)
		require.Equal(t, want, got)
	}
	for _, a := range []string{"10.1.0.10", "10.3.0.1", "fd00::1"} {
		_, found := i.Lookup(addr(a))
		require.False(t, found, a)
	}
	require.Nil(t, i.Leases("none"))
}
