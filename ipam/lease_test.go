// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/ipam"
	"github.com/mustang-net/mustang/state"
)

func TestAutomaticAddressesAreAllTheUsableOnes(t *testing.T) {
	tests := []struct {
		subnet, sub string
		want        []string
	}{
		{"10.0.0.0/29", "", []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"}},
		{"10.0.0.0/30", "", []string{"10.0.0.1", "10.0.0.2"}},
		{"10.0.0.0/31", "", []string{"10.0.0.0", "10.0.0.1"}},
		{"10.0.0.7/32", "", []string{"10.0.0.7"}},
		{"10.0.0.0/24", "10.0.0.0/30", []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}},
		{"10.0.0.0/24", "10.0.0.252/30", []string{"10.0.0.252", "10.0.0.253", "10.0.0.254"}},
		{"10.0.0.0/24", "10.0.0.64/31", []string{"10.0.0.64", "10.0.0.65"}},
		{"10.0.0.0/24", "10.0.0.9/32", []string{"10.0.0.9"}},
		{"fd00::/126", "", []string{"fd00::1", "fd00::2", "fd00::3"}},
		{"fd00::/127", "", []string{"fd00::", "fd00::1"}},
		{"fd00::5/128", "", []string{"fd00::5"}},
		{"fd00::/64", "fd00::ff:0/127", []string{"fd00::ff:0", "fd00::ff:1"}},
	}
	for _, tt := range tests {
		t.Run(tt.subnet+" "+tt.sub, func(t *testing.T) {
			i := newIPAM(t, state.Memory(), ipam.Options{})
			id := pool(t, i, tt.subnet, tt.sub)
			var got []string
			for range tt.want {
				got = append(got, lease(t, i, id).String())
			}
			require.Equal(t, tt.want, got)
			_, err := i.RequestAddress(id, netip.Addr{}, ipam.AddressOptions{})
			require.ErrorIs(t, err, ipam.ErrExhausted)
			require.ErrorContains(t, err, id)
			require.ErrorContains(t, err, "all "+strconv.Itoa(len(tt.want))+" addresses")
		})
	}
}

func TestExplicitAddresses(t *testing.T) {
	web := ipam.AddressOptions{Owner: "web"}
	gateway := ipam.AddressOptions{Gateway: true}
	tests := []struct {
		name string
		addr string
		opts ipam.AddressOptions
		kind error // nil: granted
		says string
	}{
		{"free", "10.0.0.77", web, nil, ""},
		{"outside the sub-pool", "10.0.0.5", web, nil, ""},
		{"mapped", "::ffff:10.0.0.78", web, nil, ""},
		{"network", "10.0.0.0", web, ipam.ErrInvalid, "network, broadcast"},
		{"broadcast", "10.0.0.255", gateway, ipam.ErrInvalid, "network, broadcast"},
		{"outside", "10.0.1.1", web, ipam.ErrInvalid, "outside the subnet 10.0.0.0/24"},
		{"other family", "fd00::1", web, ipam.ErrInvalid, "outside"},
		{"held by a container", "10.0.0.10", web, ipam.ErrTaken, "10.0.0.10 is held by db since 2026-01-02T03:04:05Z"},
		{"held by the same name", "10.0.0.10", ipam.AddressOptions{Owner: "db"}, ipam.ErrTaken, "held by db"},
		{"confirmed", "10.0.0.10", ipam.AddressOptions{Owner: "db", Replay: true}, nil, ""},
		{"not another's to confirm", "10.0.0.10", ipam.AddressOptions{Owner: "web", Replay: true}, ipam.ErrTaken, ""},
		{"held by nobody known", "10.0.0.11", ipam.AddressOptions{}, ipam.ErrTaken, "no one by name"},
		{"unknown cannot be confirmed", "10.0.0.11", ipam.AddressOptions{Replay: true}, ipam.ErrTaken, ""},
		{"the gateway's", "10.0.0.1", web, ipam.ErrTaken, "held by the gateway"},
		{"the gateway again", "10.0.0.1", gateway, nil, ""},
		{"gateway at a container's", "10.0.0.10", gateway, ipam.ErrTaken, "held by db"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			i := newIPAM(t, state.Memory(), ipam.Options{Now: newClock().Now, BootID: "b"})
			id := pool(t, i, "10.0.0.0/24", "10.0.0.64/26")
			for a, opts := range map[string]ipam.AddressOptions{
				"10.0.0.1": gateway, "10.0.0.10": {Owner: "db"}, "10.0.0.11": {},
			} {
				_, err := i.RequestAddress(id, addr(a), opts)
				require.NoError(t, err)
			}
			got, err := i.RequestAddress(id, addr(tt.addr), tt.opts)
			if tt.kind != nil {
				require.ErrorIs(t, err, tt.kind)
				require.ErrorContains(t, err, tt.says)
				return
			}
			require.NoError(t, err)
			require.Equal(t, netip.PrefixFrom(addr(tt.addr).Unmap(), 24), got)
		})
	}
}

func TestSubnetRouterAnycastIsNeverLeased(t *testing.T) {
	i := newIPAM(t, state.Memory(), ipam.Options{})
	id := pool(t, i, "fd00::/64")
	_, err := i.RequestAddress(id, addr("fd00::"), ipam.AddressOptions{})
	require.ErrorIs(t, err, ipam.ErrInvalid)
	_, err = i.RequestAddress(id, addr("fd00::1%eth0"), ipam.AddressOptions{})
	require.ErrorIs(t, err, ipam.ErrInvalid)
	_, err = i.RequestAddress(id, addr("fd00::ffff:ffff:ffff:ffff"), ipam.AddressOptions{})
	require.NoError(t, err, "IPv6 has no broadcast")
}

func TestAutomaticGateway(t *testing.T) {
	i := newIPAM(t, state.Memory(), ipam.Options{})
	id := pool(t, i, "10.0.0.0/24")
	for range 2 { // the second is a repetition
		got, err := i.RequestAddress(id, netip.Addr{}, ipam.AddressOptions{Gateway: true})
		require.NoError(t, err)
		require.Equal(t, netip.MustParsePrefix("10.0.0.1/24"), got)
	}
	require.Len(t, i.Leases(id), 1)
	require.Equal(t, addr("10.0.0.2"), lease(t, i, id))
}

func TestAddressOfAnEarlierBoot(t *testing.T) {
	store := state.Memory()
	old := newIPAM(t, store, ipam.Options{BootID: "boot-1"})
	id := pool(t, old, "10.0.0.0/24")
	for a, opts := range map[string]ipam.AddressOptions{
		"10.0.0.1": {Gateway: true, Owner: "net"}, "10.0.0.2": {Owner: "web"}, "10.0.0.3": {},
	} {
		_, err := old.RequestAddress(id, addr(a), opts)
		require.NoError(t, err)
	}
	i := newIPAM(t, store, ipam.Options{BootID: "boot-2"})
	_, err := i.RequestAddress(id, addr("10.0.0.2"), ipam.AddressOptions{Owner: "db"})
	require.NoError(t, err, "its container did not survive the reboot")
	_, err = i.RequestAddress(id, addr("10.0.0.2"), ipam.AddressOptions{Owner: "web"})
	require.ErrorIs(t, err, ipam.ErrTaken)
	for _, a := range []string{"10.0.0.1", "10.0.0.3"} {
		_, err = i.RequestAddress(id, addr(a), ipam.AddressOptions{Owner: "db"})
		require.ErrorIs(t, err, ipam.ErrTaken, "gateways and auxiliary addresses stay: %s", a)
	}
	require.Equal(t, addr("10.0.0.4"), lease(t, i, id), "old leases are not handed out")
}

func TestNextFit(t *testing.T) {
	i := newIPAM(t, state.Memory(), ipam.Options{Quarantine: -1})
	id := pool(t, i, "10.0.0.0/29")
	first, second := lease(t, i, id), lease(t, i, id)
	require.NoError(t, i.ReleaseAddress(id, first))
	require.NoError(t, i.ReleaseAddress(id, second))
	for _, want := range []string{"10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.1", "10.0.0.2"} {
		require.Equal(t, addr(want), lease(t, i, id))
	}
}

func TestQuarantine(t *testing.T) {
	c := newClock()
	store := state.Memory()
	i := newIPAM(t, store, ipam.Options{Now: c.Now})
	id := pool(t, i, "10.0.0.0/29")
	var all []netip.Addr
	for range 6 {
		all = append(all, lease(t, i, id))
	}
	release := func(a netip.Addr) { require.NoError(t, i.ReleaseAddress(id, a)) }

	release(all[2])
	c.advance(6 * time.Second)
	release(all[0])
	c.advance(5 * time.Second)
	require.Equal(t, all[2], lease(t, i, id), "11 s have passed for this one, 5 s for the lower one")

	// A full pool gives what rests, oldest first, rather than nothing.
	release(all[1])
	require.Equal(t, all[0], lease(t, i, id))
	require.Equal(t, all[1], lease(t, i, id))
	_, err := i.RequestAddress(id, netip.Addr{}, ipam.AddressOptions{})
	require.ErrorIs(t, err, ipam.ErrExhausted)

	// An explicit request need not wait.
	release(all[3])
	_, err = i.RequestAddress(id, all[3], ipam.AddressOptions{})
	require.NoError(t, err)

	// A clock that was set back does not prolong it: the lowest is free again, not only the oldest.
	release(all[4])
	release(all[2])
	c.advance(-time.Hour)
	require.Equal(t, all[2], lease(t, i, id))
	require.Equal(t, all[4], lease(t, i, id))

	// Freeing twice does not free the next holder's quarantine or lease.
	release(all[4])
	release(all[4])
	require.Equal(t, all[4], lease(t, i, id))
	require.NoError(t, i.ReleasePool(id))
	requireEmpty(t, store)
}

func TestExpiredQuarantineLeavesNoRecord(t *testing.T) {
	c := newClock()
	store := state.Memory()
	i := newIPAM(t, store, ipam.Options{Now: c.Now})
	id := pool(t, i, "10.0.0.0/24")
	freed, kept := lease(t, i, id), lease(t, i, id)
	require.NoError(t, i.ReleaseAddress(id, freed))
	c.advance(time.Minute)
	lease(t, i, id)
	require.NoError(t, store.View(func(tx state.Tx) error {
		return tx.Each("ipam.quarantine", func(key string, _ func(any) error) error {
			return errors.New(key + " is still there")
		})
	}))
	_, found := i.Lookup(kept)
	require.True(t, found)

	// Nor does its end delete the record of a later quarantine of the same address.
	_, err := i.RequestAddress(id, freed, ipam.AddressOptions{})
	require.NoError(t, err)
	require.NoError(t, i.ReleaseAddress(id, freed))
	lease(t, i, id)
	require.NoError(t, store.View(func(tx state.Tx) error {
		resting, err := tx.Get("ipam.quarantine", id+"|"+freed.String(), &struct{}{})
		require.True(t, resting)
		return err
	}))
}

func TestReleaseIsIdempotent(t *testing.T) {
	i := newIPAM(t, state.Memory(), ipam.Options{})
	id := pool(t, i, "10.0.0.0/24")
	a := lease(t, i, id)
	for range 2 {
		require.NoError(t, i.ReleaseAddress(id, a))
	}
	require.NoError(t, i.ReleaseAddress(id, addr("10.0.0.99")))
	require.NoError(t, i.ReleaseAddress(id, netip.Addr{}))
	require.NoError(t, i.ReleaseAddress("none", a))
	require.NoError(t, i.ReleasePool("none"))
	_, err := i.RequestAddress("none", a, ipam.AddressOptions{})
	require.ErrorIs(t, err, ipam.ErrNoPool)
	require.ErrorContains(t, err, `"none"`)
}

func TestReleaseOwner(t *testing.T) {
	i := newIPAM(t, state.Memory(), ipam.Options{})
	id := pool(t, i, "10.0.0.0/24")
	for _, owner := range []string{"a", "b", "a", ""} {
		_, err := i.RequestAddress(id, netip.Addr{}, ipam.AddressOptions{Owner: owner})
		require.NoError(t, err)
	}
	for range 2 {
		require.NoError(t, i.ReleaseOwner(id, "a"))
		leases := i.Leases(id)
		require.Len(t, leases, 2)
		require.Equal(t, "b", leases[0].Owner)
		require.Empty(t, leases[1].Owner)
	}
	require.NoError(t, i.ReleaseOwner("none", "a"))
	require.ErrorIs(t, i.ReleaseOwner(id, ""), ipam.ErrInvalid)
}

// Whatever callers do in whatever order, no address has two holders, none lies outside of its range,
// and a restart finds the same leases.
func TestRandomWorkKeepsLeasesApart(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		c := newClock()
		store := state.Memory()
		opts := ipam.Options{Now: c.Now}
		i := newIPAM(t, store, opts)
		ids := []string{
			pool(t, i, "10.0.0.0/27"), pool(t, i, "10.0.1.0/24", "10.0.1.32/28"), pool(t, i, "fd00::/64", "fd00::100/124"),
		}
		auto := map[string]netip.Prefix{ids[0]: prefixes("10.0.0.0/27")[0], ids[1]: prefixes("10.0.1.32/28")[0], ids[2]: prefixes("fd00::100/124")[0]}
		usable := map[string]int{ids[0]: 30, ids[1]: 16, ids[2]: 16}
		held := map[netip.Addr]string{}
		for range 400 {
			id := ids[rnd.IntN(len(ids))]
			inside := 0
			for a, in := range held {
				if in == id && auto[id].Contains(a) {
					inside++
				}
			}
			c.advance(time.Duration(rnd.IntN(3000)) * time.Millisecond)
			switch op := rnd.IntN(20); {
			case op < 10:
				got, err := i.RequestAddress(id, netip.Addr{}, ipam.AddressOptions{})
				if err != nil {
					require.ErrorIs(t, err, ipam.ErrExhausted)
					require.Equal(t, usable[id], inside, "seed %d: refused with addresses left", seed)
					continue
				}
				require.NotContains(t, held, got.Addr(), "seed %d", seed)
				require.True(t, auto[id].Contains(got.Addr()), "seed %d: %s", seed, got)
				held[got.Addr()] = id
			case op < 12:
				a := auto[id].Addr()
				for range rnd.IntN(20) {
					a = a.Next()
				}
				_, err := i.RequestAddress(id, a, ipam.AddressOptions{})
				if _, taken := held[a]; taken {
					require.ErrorIs(t, err, ipam.ErrTaken)
				} else if err == nil {
					held[a] = id
				} else {
					require.Equal(t, addr("10.0.0.0"), a, "seed %d: %v", seed, err)
				}
			case op < 19:
				for a, in := range held {
					require.NoError(t, i.ReleaseAddress(in, a))
					delete(held, a)
					break
				}
			default:
				i = newIPAM(t, store, opts)
			}
			total := 0
			for _, id := range ids {
				for _, l := range i.Leases(id) {
					require.Equal(t, id, held[l.Address.Addr()])
					total++
				}
			}
			require.Len(t, held, total)
		}
		for _, id := range ids {
			require.NoError(t, i.ReleasePool(id))
		}
		requireEmpty(t, store)
	}
}

func TestManyAtOnce(t *testing.T) {
	store := state.Memory()
	i := newIPAM(t, store, ipam.Options{})
	id := pool(t, i, "10.0.0.0/22")
	const workers, each = 50, 20
	var mu sync.Mutex
	holders := map[netip.Addr]int{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for n := range each {
				got, err := i.RequestAddress(id, netip.Addr{}, ipam.AddressOptions{Owner: strconv.Itoa(w)})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other, taken := holders[got.Addr()]; taken {
					t.Errorf("%s given to %d and %d", got, other, w)
				}
				holders[got.Addr()] = w
				mu.Unlock()
				_, _ = i.Lookup(got.Addr())
				if n%2 == 0 {
					mu.Lock()
					delete(holders, got.Addr())
					mu.Unlock()
					if err := i.ReleaseAddress(id, got.Addr()); err != nil {
						t.Error(err)
					}
				}
				if n%10 == 0 {
					p, err := i.RequestPool(ipam.Request{})
					if err != nil || i.ReleasePool(p.ID) != nil {
						t.Error("pool:", err)
					}
					_ = i.Pools()
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, i.Leases(id), workers*each/2)
	require.Equal(t, i.Leases(id), newIPAM(t, store, ipam.Options{}).Leases(id))
	require.Len(t, i.Pools(), 1)
}

func TestHugePoolWithAFarAddress(t *testing.T) {
	i := newIPAM(t, state.Memory(), ipam.Options{})
	id := pool(t, i, "fd00::/16")
	for _, a := range []string{"fd00::1", "fd00::2", "fd00::4", "fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"} {
		_, err := i.RequestAddress(id, addr(a), ipam.AddressOptions{})
		require.NoError(t, err)
	}
	require.Equal(t, addr("fd00::3"), lease(t, i, id))
	require.Equal(t, addr("fd00::5"), lease(t, i, id))
}

// BenchmarkFill16 leases all 65,534 addresses of a /16; ns/op is for one whole pool.
func BenchmarkFill16(b *testing.B) {
	for b.Loop() {
		i := newIPAM(b, state.Memory(), ipam.Options{})
		id := pool(b, i, "10.0.0.0/16")
		for range 1<<16 - 2 {
			if _, err := i.RequestAddress(id, netip.Addr{}, ipam.AddressOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(1<<16-2), "ns/lease")
}

// BenchmarkLeaseInFragmentedPool leases and frees in a /16 of which every second address is in use:
// the worst case for a set of runs.
func BenchmarkLeaseInFragmentedPool(b *testing.B) {
	i := newIPAM(b, state.Memory(), ipam.Options{Quarantine: -1})
	id := pool(b, i, "10.0.0.0/16")
	for n := 1; n < 1<<16-1; n += 2 {
		if _, err := i.RequestAddress(id, netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), ipam.AddressOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if err := i.ReleaseAddress(id, lease(b, i, id)); err != nil {
			b.Fatal(err)
		}
	}
}
