// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/state"
)

// ask is what ADD asks for: eth0 of a container on the network web.
func ask(container, sandbox string) Attachment {
	return Attachment{
		Key: Key{Network: "web", Attachee: Attachee{Container: container, IfName: "eth0"}}, Of: Network{Name: "web"},
		Sandbox: sandbox, Ports: []driver.PortBinding{{Port: 80, HostPort: 8080}},
	}
}

func (w *world) add(container, sandbox string) Attached {
	w.t.Helper()
	out, err := w.Add(ctx, ask(container, sandbox))
	require.NoError(w.t, err)
	return out
}

func TestAddAndDelete(t *testing.T) {
	w := newWorld(t)
	box := w.sandbox("/run/netns/a")
	nothing := w.lines()
	out := w.add("one", box)
	require.Equal(t, []Given{{netip.MustParsePrefix("10.201.0.2/24"), netip.MustParseAddr("10.201.0.1")}}, out.IPs)
	require.Equal(t, "02:00:00:00:00:01", out.MAC)
	require.Contains(t, w.lines(), "device /run/netns/a eth0")
	attached := w.lines()

	_, err := w.Add(ctx, ask("one", box))
	require.ErrorContains(t, err, "it is there already")
	require.Empty(t, cmp.Diff(attached, w.lines()), "a second ADD changes nothing")

	check := ask("one", box)
	check.IPs, check.MAC, check.Routes = []netip.Addr{out.IPs[0].Address.Addr()}, out.MAC, []netip.Prefix{out.Routes[0].To}
	require.NoError(t, w.Check(ctx, check))
	w.down = true
	require.ErrorContains(t, w.Check(ctx, check), "the device is down: set it up in the sandbox")
	w.down = false

	d := Detachment{Key: check.Key, Sandbox: box}
	for range 3 {
		w.mustDelete(d)
		require.Empty(t, cmp.Diff(nothing, w.lines()), "with the network, which nothing declares")
	}
	require.ErrorContains(t, w.Check(ctx, check), "no such attachment")
}

func TestTheNetworkStaysWhileAFileDeclaresIt(t *testing.T) {
	w := newWorld(t)
	w.declared["web"] = true
	a := ask("one", w.sandbox("/run/netns/a"))
	w.add("one", a.Sandbox)
	w.mustDelete(Detachment{Key: a.Key, Sandbox: a.Sandbox})
	require.Len(t, w.networks, 1)
	w.declared["web"] = false
	w.Sweep(ctx)
	require.Empty(t, w.networks)
	require.Empty(t, w.pools.Pools())
}

// Of a state that was lost the sandbox tells what is to go, and a network that it is in the way of says so.
func TestDeleteOfWhatALostStateKnew(t *testing.T) {
	w := newWorld(t)
	a := ask("one", w.sandbox("/run/netns/a"))
	w.add("one", a.Sandbox)
	w.store = state.Memory()
	w.orphaned = true
	w.restart()
	w.routes = []netip.Prefix{netip.MustParsePrefix("10.201.0.2/32")}
	two := ask("two", w.sandbox("/run/netns/b"))
	two.Of.Ranges = []Range{{Subnet: netip.MustParsePrefix("10.201.0.0/24")}}
	_, err := w.Add(ctx, two)
	require.ErrorContains(t, err, "what is in the way may be containers that have run since before, which are to be ended and started again")
	w.routes = nil
	two.Of.Options = map[string]string{"mode": "none"}
	_, err = w.Add(ctx, two)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "in the way")
	w.mustDelete(Detachment{Key: a.Key})
	require.Contains(t, w.lines(), "device /run/netns/a eth0", "its container still runs")
	w.mustDelete(Detachment{Key: a.Key, Sandbox: a.Sandbox})
	require.NotContains(t, w.lines(), "device /run/netns/a eth0")
}

// nerdctl's sequence for one container: DEL, ADD, DEL while it still runs, DEL, all but ADD without a sandbox.
func TestWhatNerdctlCalls(t *testing.T) {
	w := newWorld(t)
	box := w.sandbox("/proc/1/ns/net")
	a := ask("default-one", box)
	d := Detachment{Key: a.Key}
	w.mustDelete(d)
	w.add("default-one", box)
	var overlapping sync.WaitGroup
	for range 5 {
		overlapping.Go(func() { w.mustDelete(d) })
	}
	overlapping.Wait()
	require.True(t, w.gone[a.endpoint()], "no service leads there any more")
	require.NotContains(t, fmt.Sprint(w.lines()), "80", "nor a port")
	require.Contains(t, w.lines(), "device /proc/1/ns/net eth0", "but it still runs")
	require.Contains(t, fmt.Sprint(w.lines()), "lease 10.201.0.2", "and nobody else gets its address")
	w.restart()
	w.Sweep(ctx)
	require.Contains(t, w.lines(), "device /proc/1/ns/net eth0")
	w.end(box)
	w.mustDelete(d)
	w.mustDelete(d)
	require.Empty(t, w.lines())

	// started again, with another sandbox
	again := w.sandbox("/proc/2/ns/net")
	w.add("default-one", again)
	w.mustDelete(d)
	third := w.sandbox("/proc/3/ns/net")
	w.add("default-one", third)
	require.NotContains(t, w.lines(), "device /proc/2/ns/net eth0")
	require.Contains(t, w.lines(), "device /proc/3/ns/net eth0")
}

func TestAFailedAddLeavesNothing(t *testing.T) {
	for step := 1; ; step++ {
		w := newWorld(t)
		box := w.sandbox("/run/netns/a")
		nothing := w.lines()
		w.failAt = step
		_, err := w.Add(ctx, ask("one", box))
		if err == nil {
			require.Greater(t, step, 6, "every step was made to fail")
			return
		}
		require.ErrorIs(t, err, errFault)
		require.NoError(t, w.removeIdle(ctx, "web"))
		require.Empty(t, cmp.Diff(nothing, w.lines()), "step %d", step)
		w.failAt = 0
		w.add("one", box)
	}
}

func TestWhatEndedWithoutAWordIsSwept(t *testing.T) {
	w := newWorld(t)
	w.declared["web"] = true
	for _, name := range []string{"a", "b", "c"} {
		w.add(name, w.sandbox("/run/netns/"+name))
	}
	w.end("/run/netns/a")
	w.restart()
	w.sandbox("/run/netns/b") // the same path, but another namespace
	w.add("d", w.sandbox("/run/netns/d"))
	require.Len(t, w.endpoints, 2)
	require.Len(t, w.containers, 2)
	require.Len(t, w.Pools.Leases(w.poolsOf("web")[0].ID), 3, "with the gateway")
}

func TestARebootEndsAll(t *testing.T) {
	w := newWorld(t)
	w.declared["web"] = true
	w.add("a", w.sandbox("/run/netns/a"))
	w.boot = "second"
	w.restart() // with a namespace of the same path and the same cookie
	w.devices["/run/netns/a"] = map[string]bool{"lo": true}
	w.add("b", w.sandbox("/run/netns/b"))
	require.Len(t, w.endpoints, 1)
	w.add("a", "/run/netns/a")
	require.Len(t, w.endpoints, 2)
}

func TestCollect(t *testing.T) {
	w := newWorld(t)
	w.declared["web"] = true
	for _, name := range []string{"a", "b", "c"} {
		w.add(name, w.sandbox("/run/netns/"+name))
	}
	w.mustCollect("other", nil)
	require.Len(t, w.endpoints, 3)
	w.mustCollect("web", []Attachee{{"b", "eth0"}, {"c", "eth1"}})
	require.Len(t, w.endpoints, 1)
	require.Len(t, w.Pools.Leases(w.poolsOf("web")[0].ID), 2, "with the gateway")
}

// Of what was swept on a network whose addresses another plugin hands out, a record stays until that plugin is asked to take them back.
func TestAddressesOfAnotherPluginAreGivenBackByGC(t *testing.T) {
	w := newWorld(t)
	w.declared["web"] = true
	attach := func(name, address string) Attachment {
		a := ask(name, w.sandbox("/run/netns/"+name))
		a.Of.Delegated = true
		a.Of.Ranges = []Range{{Subnet: netip.MustParsePrefix("10.44.0.0/24"), Gateway: netip.MustParseAddr("10.44.0.1")}}
		a.Given = []Given{{Address: netip.MustParsePrefix(address)}}
		_, err := w.Add(ctx, a)
		require.NoError(t, err)
		return a
	}
	a := attach("a", "10.44.0.2/24")
	attach("b", "10.44.0.3/24")
	attach("c", "10.44.0.4/24")
	w.end("/run/netns/a")
	w.end("/run/netns/b")
	for range 2 {
		w.Sweep(ctx)
		require.Len(t, w.endpoints, 1)
		w.restart()
	}
	require.Equal(t, Detached{}, w.mustDelete(Detachment{Key: a.Key}), "its runtime is late, and the plugin told")
	for range 2 { // until it has been given back
		require.Equal(t, []Attachee{{"b", "eth0"}}, w.mustCollect("web", []Attachee{{"c", "eth0"}}))
	}
	w.mustDelete(Detachment{Key: Key{"web", Attachee{"b", "eth0"}}})
	require.Empty(t, w.mustCollect("web", []Attachee{{"c", "eth0"}}))

	require.Equal(t, Detached{Stays: true}, w.mustDelete(Detachment{Key: Key{"web", Attachee{"c", "eth0"}}}), "whose process still runs with the address")
	w.end("/run/netns/c")
	w.Sweep(ctx)
	require.NoError(t, w.RemoveNetwork(ctx, "web"), "nobody is on it")
	require.Empty(t, w.attached)
}

func TestTwoAddressesOfOneFamilyByAnotherPlugin(t *testing.T) {
	w := newWorld(t)
	a := ask("one", w.sandbox("/run/netns/a"))
	nothing := w.lines()
	a.Of.Delegated = true
	a.Given = []Given{{Address: netip.MustParsePrefix("10.44.0.2/24")}, {Address: netip.MustParsePrefix("10.45.0.2/24")}}
	_, err := w.Add(ctx, a)
	require.ErrorContains(t, err, "the addresses 10.44.0.2 and 10.45.0.2 are of one family: an interface gets one of each")
	w.Sweep(ctx)
	require.Empty(t, cmp.Diff(nothing, w.lines()))
}

// Between the making of a network and the writing of its file nobody takes it for idle; once the file was there, it goes with it.
func TestANetworkWaitsForItsFile(t *testing.T) {
	w := newWorld(t)
	_, err := w.CreateNetwork(ctx, Network{Name: "web"})
	require.NoError(t, err)
	w.Sweep(ctx)
	require.Len(t, w.networks, 1)
	w.declared["web"] = true
	w.Sweep(ctx)
	w.declared["web"] = false
	w.Sweep(ctx)
	require.Empty(t, w.networks)
}

func TestANetworkThatSomebodyIsAttachingToIsNotRemoved(t *testing.T) {
	w := newWorld(t)
	n, err := w.ensure(ctx, Network{Name: "web"}, nil)
	require.NoError(t, err)
	require.ErrorContains(t, w.RemoveNetwork(ctx, "web"), "1 containers are on it: end them first")
	n.release(w.Manager)
	require.NoError(t, w.RemoveNetwork(ctx, "web"))
}

func TestRoomInOneOfTwoSubnets(t *testing.T) {
	w := newWorld(t)
	want := Network{Name: "web", Ranges: []Range{{Subnet: netip.MustParsePrefix("10.44.0.0/30")}, {Subnet: netip.MustParsePrefix("10.45.0.0/30")}}}
	w.declared["web"] = true
	for i, room := range []bool{true, true, false} {
		err := w.CanAdd(ctx, want)
		if !room {
			require.ErrorContains(t, err, "has no free address")
			break
		}
		require.NoError(t, err)
		a := ask(fmt.Sprint("c", i), w.sandbox(fmt.Sprint("/run/netns/", i)))
		a.Of, a.Ports = want, nil
		_, err = w.Add(ctx, a)
		require.NoError(t, err)
	}
}

func TestFiftyInParallel(t *testing.T) {
	w := newWorld(t)
	var all sync.WaitGroup
	seen := sync.Map{}
	for i := range 50 {
		name := fmt.Sprint("c", i)
		w.sandbox("/run/netns/" + name)
		all.Go(func() {
			out, err := w.Add(ctx, ask(name, "/run/netns/"+name))
			require.NoError(t, err)
			_, twice := seen.LoadOrStore(out.IPs[0].Address, name)
			require.False(t, twice)
		})
	}
	all.Wait()
	require.Len(t, w.endpoints, 50)
	require.Len(t, w.networks, 1)
	for i := range 50 {
		a := ask(fmt.Sprint("c", i), "")
		all.Go(func() { w.mustDelete(Detachment{a.Key, "/run/netns/" + a.Container}) })
	}
	all.Wait()
	require.Empty(t, w.endpoints)
	require.Empty(t, w.networks)
	require.Empty(t, w.pools.Pools())
}

func TestAddressesThatAreAskedFor(t *testing.T) {
	w := newWorld(t)
	w.add("one", w.sandbox("/run/netns/a"))
	for _, tt := range []struct{ ips, wants string }{
		{"10.201.0.2", "is held by one/eth0"},
		{"10.9.0.2", "lies in none of the subnets"},
		{"10.201.0.7 10.201.0.8", "are of one family"},
		{"10.201.0.0", "network, broadcast"},
		{"fd00::1", "lies in none of the subnets"},
	} {
		a := ask("two", w.sandbox("/run/netns/b"))
		for ip := range strings.FieldsSeq(tt.ips) {
			a.IPs = append(a.IPs, netip.MustParseAddr(ip))
		}
		before := w.lines()
		_, err := w.Add(ctx, a)
		require.ErrorContains(t, err, tt.wants)
		require.Empty(t, cmp.Diff(before, w.lines()))
	}
}

func TestAConfigurationThatChanges(t *testing.T) {
	w := newWorld(t)
	w.declared["web"] = true
	a := ask("one", w.sandbox("/run/netns/a"))
	w.add("one", a.Sandbox)
	b := ask("two", w.sandbox("/run/netns/b"))
	b.Of.Options = map[string]string{"mode": "bridge"}
	_, err := w.Add(ctx, b)
	require.ErrorContains(t, err, "has changed while 1 containers are on it")
	w.mustDelete(Detachment{a.Key, a.Sandbox})
	_, err = w.Add(ctx, b)
	require.NoError(t, err)
	require.Equal(t, "bridge", w.networks[NetworkID("web")].Options["mode"])
	require.Len(t, w.Pools.Pools(), 1)
}

func TestWhoPublishes(t *testing.T) {
	w := newWorld(t)
	box := w.sandbox("/run/netns/a")
	nothing := w.lines()
	for _, tt := range []struct{ key, value, wants string }{
		{"publish", "gwbridge", "docker_gwbridge is an engine's"},
		{"ebpf", "off", "publishes no ports with these options"},
		{"publish", "engine", "choose one of"},
	} {
		a := ask("one", box)
		a.Of.Options = map[string]string{tt.key: tt.value}
		_, err := w.Add(ctx, a)
		require.ErrorContains(t, err, tt.wants)
		require.Empty(t, cmp.Diff(nothing, w.lines()))
	}
	a := ask("one", box)
	a.Of.Options, a.Ports = map[string]string{"ebpf": "off"}, nil
	_, err := w.Add(ctx, a)
	require.NoError(t, err)
}

func TestNamesOfACompose(t *testing.T) {
	w := newWorld(t)
	w.labels = map[string]string{labelService: "db", labelProject: "shop", labelName: "shop-db-1", "mustang.weight": "3", "other": "x"}
	a := ask("default-"+strings.Repeat("ab", 32), w.sandbox("/run/netns/a"))
	a.Aliases = []string{"store"}
	_, err := w.Add(ctx, a)
	require.NoError(t, err)
	for range 2 {
		c := w.containers[a.Container]
		require.Equal(t, "shop-db-1", c.Name)
		require.Equal(t, []string{"store", "db", "db.shop.mustang"}, c.Aliases[a.endpoint()])
		require.NotContains(t, c.Labels, "other")
		w.restart() // which tells of it again
	}
	require.Equal(t, "abababababab", nameOf(a.Container))
}
