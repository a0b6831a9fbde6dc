// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/state"
)

// shopWorld has the network and its web replicas in these phases.
func shopWorld(t *testing.T, phases ...Phase) *world {
	w := newWorld(t)
	blocks, err := w.AddNetwork(shop)
	require.NoError(t, err)
	require.Equal(t, "[10.96.1.0/24]", fmt.Sprint(blocks))
	for i, p := range phases {
		ep, c := replica(i+1, p, "web")
		w.run(t, ep, c)
	}
	return w
}

func TestTiers(t *testing.T) {
	const a, b = " 172.20.0.1@101", " 172.20.0.2@102"
	idleA, idleB := "idle 172.20.0.1", "idle 172.20.0.2"
	tests := []struct {
		one, two Phase
		strict   bool
		slots    string
		idle     []string
	}{
		{PhaseReady, PhaseReady, false, a + b, nil},
		{PhaseReady, PhaseStarting, false, a, []string{idleB}},
		{PhaseStarting, PhaseDraining, false, a, []string{idleB}},
		{PhaseUnhealthy, PhaseDraining, false, b, []string{idleA}},
		{PhaseUnhealthy, PhaseUnhealthy, false, a + b, nil},
		{PhaseUnhealthy, PhasePaused, false, a, []string{idleB}},
		{PhasePaused, PhasePaused, false, "", []string{idleA, idleB}},
		{PhaseStarting, PhaseDraining, true, "", []string{idleA, idleB}},
		{PhaseReady, PhaseStarting, true, a, []string{idleB}},
		{PhaseReady, PhaseStopped, false, a, nil},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s %s strict=%v", tt.one, tt.two, tt.strict), func(t *testing.T) {
			w := shopWorld(t)
			for i, p := range []Phase{tt.one, tt.two} {
				ep, c := replica(i+1, p, "web")
				if tt.strict {
					c.Labels = map[string]string{"mustang.health": "strict"}
				}
				w.run(t, ep, c)
			}
			w.maps.is(append(tt.idle, w.vip(t, "web")+" net=1 ->"+tt.slots)...)
		})
	}
}

func TestLifeOfAReplica(t *testing.T) {
	w := shopWorld(t, PhaseReady, PhaseReady)
	vip := w.vip(t, "web")
	both, one := vip+" net=1 -> 172.20.0.1@101 172.20.0.2@102", vip+" net=1 -> 172.20.0.1@101"
	w.maps.is(both)
	ep, c := replica(2, PhaseReady, "web")

	w.Gone("ep2")
	w.maps.is(one)
	w.PutContainer(c) // read before it died
	w.maps.is(one)
	require.NoError(t, w.PutEndpoint(ep)) // started again
	w.maps.is(both)

	w.Gone("ep2")
	c.Started = time.Now().Add(-time.Minute)
	w.PutContainer(c)
	w.maps.is(one)
	c.Started = time.Now().Add(time.Millisecond)
	w.PutContainer(c)
	w.maps.is(both)

	require.NoError(t, w.Drain("box-2", false))
	w.maps.is(one, "idle 172.20.0.2")
	require.NoError(t, w.Drain("172.20.0.2", true))
	w.maps.is(both)

	require.NoError(t, w.RemoveEndpoint("ep2"))
	w.RemoveContainer(c.ID)
	w.maps.is(one)
	w.RemoveContainer("c0001")
	w.maps.is(vip + " net=1 ->")
	require.Equal(t, vip, w.vip(t, "web"), "the VIP stays for who comes next")
	ep, c = replica(3, PhaseReady, "web")
	w.run(t, ep, c)
	w.maps.is(vip + " net=1 -> 172.20.0.3@103")

	require.NoError(t, w.RemoveEndpoint("ep3"))
	require.NoError(t, w.RemoveNetwork("n1"))
	w.maps.is()
	require.Empty(t, w.List())
	w.restart(t)
	require.Empty(t, w.networks)
	require.Empty(t, w.List())
}

func TestLabelsAndOptions(t *testing.T) {
	w := shopWorld(t)
	ep, c := replica(1, PhaseReady, "web")
	c.Labels = map[string]string{"mustang.service": "Front", "mustang.vip": "10.96.1.7", "mustang.weight": "6"}
	ep.Options = map[string]string{"mustang.service": "edge", "mustang.weight": "4"}
	w.run(t, ep, c)
	require.Equal(t, "10.96.1.7", w.vip(t, "edge"), "names come in order, the first gets the address")
	ep2, c2 := replica(2, PhaseReady, "edge")
	c2.Labels = map[string]string{"mustang.weight": "6"}
	w.run(t, ep2, c2)
	web := w.vip(t, "web")
	w.maps.is("10.96.1.7 net=1 -> 172.20.0.1@101x2 172.20.0.2@102x3", web+" net=1 -> 172.20.0.1@101")

	c2.Labels = map[string]string{"mustang.vip": "off"}
	w.PutContainer(c2)
	w.maps.is("10.96.1.7 net=1 -> 172.20.0.1@101", web+" net=1 -> 172.20.0.1@101")

	c2.Labels = map[string]string{"mustang.vip": "nonsense", "mustang.weight": "0", "mustang.health": "x"}
	w.PutContainer(c2)
	require.Contains(t, w.logged(), "mustang.weight=0: use 1 to 100", "a label is no more than warned of")
	w.maps.is("10.96.1.7 net=1 -> 172.20.0.1@101x4 172.20.0.2@102", web+" net=1 -> 172.20.0.1@101")

	c2.Aliases["ep2"] = []string{"renamed"}
	w.PutContainer(c2)
	require.Equal(t, "172.20.0.2", w.List()[2].Backends[0].Addr.Addr().String())
}

func TestWeightsAreCapped(t *testing.T) {
	members := make([]member, 40)
	ids := make([]uint32, 40)
	for i := range members {
		ids[i] = uint32(i + 1)
		members[i] = member{phase: PhaseReady, weight: 100}
	}
	members[0].weight = 1
	got := slots(members, ids, PhaseReady)
	require.LessOrEqual(t, len(got), MaxSlots)
	require.Greater(t, len(got), MaxSlots-40)
	require.ElementsMatch(t, ids, unique(got))
}

func TestSyncPrunesAndNotBefore(t *testing.T) {
	w := shopWorld(t, PhaseReady, PhaseReady, PhaseReady)
	vip := w.vip(t, "web")
	all := vip + " net=1 -> 172.20.0.1@101 172.20.0.2@102 172.20.0.3@103"
	w.restart(t)
	_, err := w.AddNetwork(shop)
	require.NoError(t, err)
	require.NoError(t, w.Reconcile())
	w.maps.is(all)
	// One is told of, one died meanwhile, of one nobody has told yet.
	ep, c := replica(1, PhaseReady, "web")
	w.run(t, ep, c)
	w.maps.is(all)
	ep, _ = replica(2, PhaseReady, "web")
	require.NoError(t, w.PutEndpoint(ep))
	w.maps.is(all)
	w.Gone("ep2")
	w.maps.is(vip + " net=1 -> 172.20.0.1@101 172.20.0.3@103")
	require.NoError(t, w.Sync())
	w.maps.is(vip + " net=1 -> 172.20.0.1@101")
}

func TestWithoutTheDaemonTheMapsTell(t *testing.T) {
	w := shopWorld(t, PhaseReady, PhaseReady)
	ep, c := replica(2, PhaseReady, "web")
	c.Labels = map[string]string{"mustang.weight": "3"}
	w.PutContainer(c)
	vip := w.vip(t, "web")
	maps := w.maps.dump()
	before := w.List()[0].Backends

	w.restart(t)
	require.NoError(t, w.Reconcile())
	backends := w.List()[0].Backends
	require.Len(t, backends, 2)
	for i, b := range backends {
		require.Equal(t, BackendView{ID: before[i].ID, Addr: before[i].Addr, Weight: uint32(1 + 2*i), State: PhaseUnknown, Active: true}, b)
	}
	for _, undo := range []bool{false, true} {
		err := w.Drain("172.20.0.2", undo)
		require.ErrorContains(t, err, "172.20.0.2 is a container's backend: that needs the daemon: start it with `mustang daemon`")
		require.Equal(t, "unavailable", class(err))
	}
	require.ErrorIs(t, w.Drain("172.20.0.9", false), ErrNotFound)
	err := w.Drain("box-2", false)
	require.ErrorIs(t, err, ErrNotFound)
	require.ErrorContains(t, err, "start it with `mustang daemon`")
	require.Equal(t, maps, w.maps.dump())

	// Whom the sources tell of is known again, and what nobody did is gone once they all have spoken.
	require.NoError(t, w.PutEndpoint(ep))
	require.Equal(t, PhaseUnknown, w.List()[0].Backends[1].State)
	require.ErrorContains(t, w.Drain("172.20.0.2", false), "needs the daemon")
	w.PutContainer(c)
	backends = w.List()[0].Backends
	require.Len(t, backends, 2)
	require.Equal(t, []Phase{PhaseReady, PhaseUnknown}, []Phase{backends[0].State, backends[1].State})
	require.NoError(t, w.Drain("172.20.0.2", false))
	require.NoError(t, w.Drain("172.20.0.2", true))
	require.NoError(t, w.Sync())
	require.Len(t, w.List()[0].Backends, 1)
	w.maps.is(vip + " net=1 -> 172.20.0.2@102")
}

func TestCheckEndpointOptions(t *testing.T) {
	for _, good := range []map[string]string{
		nil,
		{"mustang.service": "api, web.front", "mustang.vip": "10.96.1.7,fd6d:7374:10::1:7", "mustang.health": "Strict", "mustang.weight": "100"},
		{"mustang.service": "", "mustang.vip": "", "mustang.health": "", "mustang.weight": ""},
		{"mustang.vip": "off", "mustang.health": "tiers", "mustang.weight": " 1 "},
		{"mustang.other": "x", "com.docker.network.endpoint.sysctls": "x"},
	} {
		require.NoError(t, CheckEndpointOptions(good), "%v", good)
	}
	for _, tt := range []struct{ key, value, want string }{
		{"mustang.service", "a,b c", "mustang.service=b c: use names of at most 253 letters"},
		{"mustang.service", "a/b", "mustang.service=a/b: use names"},
		{"mustang.vip", "on", "mustang.vip=on: use auto, off or an address of the network's VIPs"},
		{"mustang.vip", "off,10.96.1.7", "mustang.vip=off,10.96.1.7: use auto, off or an address"},
		{"mustang.vip", "10.96.1.0/24", "mustang.vip=10.96.1.0/24: use auto"},
		{"mustang.health", "yes", "mustang.health=yes: use tiers or strict"},
		{"mustang.weight", "0", "mustang.weight=0: use 1 to 100"},
		{"mustang.weight", "101", "use 1 to 100"},
		{"mustang.weight", "heavy", "mustang.weight=heavy: use 1 to 100"},
	} {
		require.ErrorContains(t, CheckEndpointOptions(map[string]string{tt.key: tt.value}), tt.want)
	}
	require.EqualError(t, CheckEndpointOptions(map[string]string{"mustang.weight": "0", "mustang.health": "x", "mustang.vip": "a,b"}),
		"endpoint options: mustang.vip=a,b: use auto, off or an address of the network's VIPs; mustang.health=x: use tiers or strict; mustang.weight=0: use 1 to 100")
}

func TestAnyOrderOfEventsEndsAlike(t *testing.T) {
	hand := spec("tcp:10.96.0.1:80", "10.1.0.1:80")
	var want string
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t)
		events := []func(){
			func() { _, err := w.AddNetwork(shop); require.NoError(t, err) },
			func() { _, err := w.Add(hand); require.NoError(t, err) },
		}
		for n, p := range []Phase{PhaseReady, PhaseStarting, PhaseReady, PhaseUnhealthy, PhasePaused} {
			ep, c := replica(n+1, p, "web", fmt.Sprint("own", n))
			c.Labels = map[string]string{"mustang.weight": fmt.Sprint(1 + n)}
			events = append(events,
				func() { require.NoError(t, w.PutEndpoint(ep)) },
				func() { w.PutContainer(c) },
				func() { w.PutContainer(c) })
		}
		r.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
		for _, e := range events {
			e()
		}
		require.NoError(t, w.Err())
		if want == "" {
			want = w.maps.dump()
		}
		require.Equal(t, want, w.maps.dump(), "seed %d", seed)
	}
}

func TestBlocks(t *testing.T) {
	w := newWorld(t)
	n := Network{Number: 1, IPv4: true, IPv6: true, VIP: true}
	for i, want := range []string{"[10.96.1.0/24 fd6d:7374:10::1:0/112]", "[10.96.2.0/24 fd6d:7374:10::2:0/112]"} {
		n.ID, n.Number = fmt.Sprint("n", i), uint32(i+1)
		blocks, err := w.AddNetwork(n)
		require.NoError(t, err)
		require.Equal(t, want, fmt.Sprint(blocks))
		again, err := w.AddNetwork(n)
		require.NoError(t, err)
		require.Equal(t, blocks, again)
		w.restart(t)
		again, err = w.AddNetwork(n)
		require.NoError(t, err)
		require.Equal(t, blocks, again)
	}
	n.Name = "named"
	_, err := w.AddNetwork(n)
	require.NoError(t, err)
	n.Name = ""
	_, err = w.AddNetwork(n)
	require.NoError(t, err)
	require.Equal(t, "named", w.networks[n.ID].Name)

	blocks, err := w.AddNetwork(Network{ID: "off", Number: 9, IPv4: true})
	require.NoError(t, err)
	require.Empty(t, blocks)
	for i := 2; i < 255; i++ {
		_, err := w.AddNetwork(Network{ID: fmt.Sprint("n", i), Number: 1, IPv4: true, VIP: true})
		require.NoError(t, err)
	}
	_, err = w.AddNetwork(Network{ID: "more", Number: 1, IPv4: true, VIP: true})
	require.ErrorContains(t, err, "no block of VIPs is left")
	require.NoError(t, w.RemoveNetwork("n7"))
	blocks, err = w.AddNetwork(Network{ID: "more", Number: 1, IPv4: true, VIP: true})
	require.NoError(t, err)
	require.Equal(t, "[10.96.8.0/24]", fmt.Sprint(blocks))
}

func TestFullBlockReclaimsIdleNames(t *testing.T) {
	w := shopWorld(t)
	ep, c := replica(1, PhaseReady)
	require.NoError(t, w.PutEndpoint(ep))
	for i := range 254 {
		c.Aliases = map[string][]string{"ep1": {fmt.Sprint("run", i)}}
		w.PutContainer(c)
	}
	require.Len(t, w.List(), 254)
	c.Aliases = map[string][]string{"ep1": {"one-more", "run200"}}
	w.PutContainer(c)
	require.NoError(t, w.Err())
	require.Len(t, w.List(), 254)
	w.restart(t)
	require.Len(t, w.List(), 254)
}

func TestRemovedBeforeSync(t *testing.T) {
	w := shopWorld(t, PhaseReady, PhaseReady)
	vip := w.vip(t, "web")
	w.restart(t)
	ep, _ := replica(2, PhaseReady, "web")
	require.NoError(t, w.PutEndpoint(ep))
	require.NoError(t, w.RemoveEndpoint("ep2"))
	w.maps.is(vip + " net=1 -> 172.20.0.1@101")
}

func TestVIPsTurnedOff(t *testing.T) {
	w := shopWorld(t, PhaseReady)
	off := shop
	off.VIP = false
	_, err := w.AddNetwork(off)
	require.NoError(t, err)
	w.maps.is()
	require.Equal(t, "engine", say(w.Resolve(101, "web")))
	_, err = w.AddNetwork(shop)
	require.NoError(t, err)
	w.maps.is(w.vip(t, "web") + " net=1 -> 172.20.0.1@101")
}

// brokenStore refuses every write while broken is set.
type brokenStore struct {
	state.Store
	broken bool
}

func (s *brokenStore) Update(fn func(state.Tx) error) error {
	if s.broken {
		return errInjected
	}
	return s.Store.Update(fn)
}

func TestStoreFails(t *testing.T) {
	w := shopWorld(t)
	store := &brokenStore{Store: w.store, broken: true}
	w.Manager.store = store
	_, err := w.Add(spec("10.96.0.1:80", "10.1.0.1"))
	require.ErrorIs(t, err, errInjected)
	_, _, _, _, err = w.Apply([]Spec{spec("10.96.0.1:80", "10.1.0.1")})
	require.ErrorIs(t, err, errInjected)
	w.maps.is()
	// Containers do not wait for a disk: they are served, and saved later.
	ep, c := replica(1, PhaseReady, "web")
	_ = w.PutEndpoint(ep)
	w.PutContainer(c)
	require.ErrorIs(t, w.Err(), errInjected)
	vip := w.vip(t, "web")
	w.maps.is(vip + " net=1 -> 172.20.0.1@101")
	store.broken = false
	require.NoError(t, w.Reconcile())
	require.NoError(t, w.Err())
	w.restart(t)
	require.Equal(t, vip, w.vip(t, "web"))
}

func TestManyAtOnce(t *testing.T) {
	w := shopWorld(t)
	var wait sync.WaitGroup
	for n := range 8 {
		wait.Go(func() {
			ep, c := replica(n+1, PhaseReady, "web")
			for range 50 {
				_ = w.PutEndpoint(ep)
				w.PutContainer(c)
				w.Resolve(ep.Cookie, "web")
				w.List()
				w.Gone(ep.ID)
				_ = w.RemoveEndpoint(ep.ID)
				w.RemoveContainer(c.ID)
			}
		})
	}
	wait.Wait()
	require.NoError(t, w.Err())
	w.maps.is(w.vip(t, "web") + " net=1 ->")
}

func TestLowerTiersAreInReserve(t *testing.T) {
	members := []member{
		{phase: PhaseUnhealthy, weight: 1}, {phase: PhaseReady, weight: 3}, {phase: PhaseDraining, weight: 2},
		{phase: PhaseReady, weight: 1}, {phase: PhaseStarting, weight: 1},
	}
	ids := []uint32{1, 2, 3, 4, 5}
	require.Equal(t, []uint32{5, 3, 1}, reserve(members, ids, PhaseReady, false), "starting, draining, unhealthy; each once")
	require.Empty(t, reserve(members, ids, PhaseReady, true), "strict is healthy or nothing")
	require.Empty(t, reserve(members[:1], ids[:1], PhaseUnhealthy, false))
	require.Empty(t, reserve(nil, nil, "", false))
}

func TestLabelsThatSayNothing(t *testing.T) {
	_, problems := readOptions(map[string]string{
		"com.docker.compose.project": "shop", "mustang.weight": "2", "mustang.halth": "strict", "mustang.publish_sources": "10.0.0.0/8",
	}, nil)
	require.Equal(t, []string{
		"mustang.halth: the labels are mustang.service, mustang.vip, mustang.health, mustang.weight",
		"mustang.publish_sources as a label, which says nothing: give --network name=NETWORK,driver-opt=mustang.publish_sources=…, or the network's option publish_sources",
	}, problems)
}
