// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

const sandboxLine = "sandbox " + box + " sockets true tracked true dns 5353"

func TestAContainerOnEngine29(t *testing.T) {
	w := newWorld(t)
	empty := w.lines()
	w.createNetwork(net1, 1)
	networkOnly := w.lines()
	e := w.createEndpoint(ep1, net1, 1, 2)
	require.Equal(t, "02:42:0a:01:00:02", e.MAC)
	w.kernel.addNetns(box) // the sandbox is there at Join
	gateway, gateway6 := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")
	want := Join{SrcName: "mspe1e1e1e1e1e", DstPrefix: "eth", Gateway: gateway, Gateway6: gateway6, Routes: []netip.Prefix{
		netip.MustParsePrefix("10.96.1.0/24"), netip.MustParsePrefix("fd6d:7374:10::1:0/112"),
	}}
	require.Equal(t, want, w.join(ep1, box))
	w.kernel.moveInto(if1, box)
	require.Subset(t, w.lines(), []string{
		"device " + if1 + ` of "` + ep1 + `" addresses [10.1.0.2 fd00:1::2] gateways [10.1.0.1 fd00:1::1] clsact false`,
		"endpoint 10.1.0.2 at " + if1 + " network net1 redirect true MAC 02:42:0a:01:00:02",
		"endpoint fd00:1::2 at " + if1 + " network net1 redirect true MAC 02:42:0a:01:00:02",
		"interface " + if1 + " network net1 gateways 10.1.0.1 fd00:1::1",
		"programs of " + if1 + " on " + if1, sandboxLine, "member " + box + " of net1",
	})
	require.NoError(t, w.Leave(ctx, net1, ep1))
	require.True(t, w.services.gone[ep1], "no new flows from Leave on")
	require.NoError(t, w.DeleteEndpoint(ctx, net1, ep1))
	w.kernel.removeNetns(box)
	require.Empty(t, cmp.Diff(networkOnly, w.lines()))
	require.NoError(t, w.DeleteNetwork(ctx, net1))
	require.Empty(t, cmp.Diff(empty, w.lines()))
}

func TestASandboxOfEngine20ComesLate(t *testing.T) {
	t.Run("after Join: it is entered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.createNetwork(net1, 1)
			w.createEndpoint(ep1, net1, 1, 2)
			w.join(ep1, box)
			require.NotContains(t, w.lines(), sandboxLine)
			time.Sleep(200 * time.Millisecond)
			w.kernel.addNetns(box)
			time.Sleep(sandboxPoll)
			synctest.Wait()
			require.Contains(t, w.lines(), sandboxLine)
			require.Empty(t, w.waiting)
		})
	})
	t.Run("very late: that is logged once, and it is entered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.createNetwork(net1, 1)
			w.createEndpoint(ep1, net1, 1, 2)
			w.join(ep1, box)
			time.Sleep(sandboxWait + time.Second)
			synctest.Wait()
			require.Len(t, w.log.AllEntries(), 1)
			require.Equal(t, "the endpoint has waited 1m0s for its sandbox, and goes on", w.log.LastEntry().Message)
			w.kernel.addNetns(box)
			time.Sleep(2 * sandboxRetry)
			synctest.Wait()
			require.Contains(t, w.lines(), sandboxLine)
			require.Len(t, w.log.AllEntries(), 1)
			w.remove(ep1)
			require.Empty(t, w.Endpoints())
		})
	})
	for name, end := range map[string]func(*world) error{
		"Leave":          func(w *world) error { return w.Leave(ctx, net1, ep1) },
		"DeleteEndpoint": func(w *world) error { return w.DeleteEndpoint(ctx, net1, ep1) },
		"DeleteNetwork":  func(w *world) error { return w.DeleteNetwork(ctx, net1) },
	} {
		t.Run("after "+name+": it is not entered", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.createNetwork(net1, 1)
				w.createEndpoint(ep1, net1, 1, 2)
				w.join(ep1, box)
				require.NoError(t, end(w))
				w.kernel.addNetns(box)
				time.Sleep(time.Second)
				synctest.Wait()
				require.NotContains(t, w.lines(), sandboxLine)
			})
		})
	}
	t.Run("and cannot be entered at first: it is tried again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.createNetwork(net1, 1)
			w.createEndpoint(ep1, net1, 1, 2)
			w.join(ep1, box)
			w.fault.spare = func(call string) bool { return call != "put member" }
			w.fault.arm(failsOnce, 1)
			w.kernel.addNetns(box)
			time.Sleep(2 * sandboxRetry)
			synctest.Wait()
			require.True(t, w.fault.disarm())
			require.Contains(t, w.lines(), "member "+box+" of net1")
		})
	})
	t.Run("after the daemon was restarted: it is entered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.createNetwork(net1, 1)
			w.createEndpoint(ep1, net1, 1, 2)
			w.join(ep1, box)
			w.restart()
			w.kernel.addNetns(box)
			time.Sleep(sandboxPoll)
			synctest.Wait()
			require.Contains(t, w.lines(), sandboxLine)
		})
	})
}

func TestALateSandboxThatIsEnteredDuringLeave(t *testing.T) {
	w := newWorld(t)
	w.createNetwork(net1, 1)
	w.createEndpoint(ep1, net1, 1, 2)
	w.join(ep1, box)
	w.services.onGone = func() {
		cookie := w.kernel.addNetns(box).cookie
		require.NoError(t, w.entered(ctx, ep1, cookie))
		require.False(t, w.services.gone[ep1])
	}
	require.NoError(t, w.Leave(ctx, net1, ep1))
	require.True(t, w.services.gone[ep1])
	require.NotContains(t, w.lines(), sandboxLine)
}

func TestALeaveThatCouldNotBeRecordedCanBeRepeated(t *testing.T) {
	w := newWorld(t)
	w.kernel.addNetns(box)
	w.createNetwork(net1, 1)
	w.createEndpoint(ep1, net1, 1, 2)
	w.join(ep1, box)
	w.fault.spare = func(call string) bool { return call != "store" }
	w.fault.arm(failsOnce, 1)
	require.ErrorIs(t, w.Leave(ctx, net1, ep1), errInjected)
	w.fault.disarm()
	require.NoError(t, w.Leave(ctx, net1, ep1))
	w.restart()
	require.NotContains(t, w.lines(), sandboxLine)
}

// Who is removed, and could not be forgotten, does not come back to the services when its removal is repeated.
func TestARemovalThatIsRepeatedPutsNothingBack(t *testing.T) {
	w := newWorld(t)
	w.createNetwork(net1, 1)
	w.createEndpoint(ep1, net1, 1, 2)
	w.fault.spare = func(call string) bool { return call != "store" }
	w.fault.arm(failsOnward, 2)
	require.ErrorIs(t, w.DeleteEndpoint(ctx, net1, ep1), errInjected)
	told := false
	w.fault.spare = func(call string) bool {
		told = told || call == "tell of an endpoint"
		return true
	}
	require.NoError(t, w.DeleteEndpoint(ctx, net1, ep1))
	require.False(t, told)
	require.Empty(t, w.Endpoints())
}

func TestEveryCallCanBeRepeated(t *testing.T) {
	for _, late := range []bool{false, true} {
		w := newWorld(t)
		empty := w.lines()
		if !late {
			w.kernel.addNetns(box)
		}
		for _, s := range life {
			if s.name == "add by hand" || s.name == "remove by hand" {
				continue
			}
			require.NoError(t, s.do(w), s.name)
			once := w.lines()
			require.NoError(t, s.do(w), "%s again", s.name)
			require.Empty(t, cmp.Diff(once, w.lines()), "%s again", s.name)
		}
		w.kernel.removeNetns(box)
		require.Empty(t, cmp.Diff(empty, w.lines()))
	}
}

func TestARepeatThatDiffersIsRefused(t *testing.T) {
	w := newWorld(t)
	w.createNetwork(net1, 1)
	w.createNetwork(net2, 2)
	w.createEndpoint(ep1, net1, 1, 2)
	before := w.lines()
	require.EqualError(t, w.CreateNetwork(ctx, network(net1, 3, nil)),
		"create network net1: it exists with the subnets [10.1.0.0/24 fd00:1::/64] and the options map[]")
	require.ErrorContains(t, w.CreateNetwork(ctx, network(net1, 1, map[string]string{"lb": "packet"})), "it exists with")
	internal := network(net1, 1, nil)
	internal.Internal = true
	require.ErrorContains(t, w.CreateNetwork(ctx, internal), "it exists with")
	_, err := w.CreateEndpoint(ctx, endpoint(ep1, net1, 1, 3))
	require.EqualError(t, err, "create endpoint "+ep1+
		": it exists with the addresses [10.1.0.2 fd00:1::2], the MAC 02:42:0a:01:00:02 and the options map[]")
	_, err = w.CreateEndpoint(ctx, endpoint(ep1, net2, 1, 2))
	require.ErrorContains(t, err, "it exists with")
	other := endpoint(ep1, net1, 1, 2)
	other.MAC = "02:00:00:00:00:01"
	_, err = w.CreateEndpoint(ctx, other)
	require.ErrorContains(t, err, "it exists with")
	other.MAC = "02:42:0A:01:00:02"
	_, err = w.CreateEndpoint(ctx, other)
	require.NoError(t, err, "the same MAC, written otherwise")
	require.Empty(t, cmp.Diff(before, w.lines()))
}

func TestTheSandboxEndsWithItsLastEndpoint(t *testing.T) {
	w := newWorld(t)
	w.kernel.addNetns(box)
	w.createNetwork(net1, 1)
	require.NoError(t, w.CreateNetwork(ctx, network(net2, 2, map[string]string{"lb": "packet", "vip": "off"})))
	w.createEndpoint(ep1, net1, 1, 2)
	w.createEndpoint(ep2, net2, 2, 2)
	w.join(ep1, box)
	require.Empty(t, w.join(ep2, box).Routes)
	require.Subset(t, w.lines(), []string{
		"sandbox " + box + " sockets false tracked true dns 5353", "member " + box + " of net1", "member " + box + " of net2",
	}, "a network that asks for packets only is heeded, in whatever order they were joined")
	both := w.lines()
	for range 5 {
		w.restart()
		require.Empty(t, cmp.Diff(both, w.lines()))
	}
	w.remove(ep2)
	require.Contains(t, w.lines(), sandboxLine)
	require.NotContains(t, w.lines(), "member "+box+" of net2")
	w.remove(ep1)
	require.NotContains(t, w.lines(), sandboxLine)
	require.Empty(t, w.resolver.at)
}

func TestAPathThatLeadsToAnotherSandboxNow(t *testing.T) {
	w := newWorld(t)
	w.kernel.addNetns(box)
	w.createNetwork(net1, 1)
	w.createEndpoint(ep1, net1, 1, 2)
	w.join(ep1, box)
	old := w.kernel.netns[box].cookie
	w.kernel.addNetns(box)
	w.join(ep1, box)
	require.NotContains(t, w.datapath.sandboxes, old)
	require.NotContains(t, w.datapath.members, old)
	require.NotContains(t, w.resolver.at, old)
	require.Contains(t, w.lines(), sandboxLine)
}

func TestListenersAreTrackedOnlyWhereNoneCanHaveBeenMissed(t *testing.T) {
	w := newWorld(t)
	w.kernel.addNetns(box).listens = true
	w.createNetwork(net1, 1)
	w.createEndpoint(ep1, net1, 1, 2)
	w.join(ep1, box)
	require.Contains(t, w.lines(), "sandbox "+box+" sockets true tracked false dns 5353")
	w.kernel.netns[box].listens = false
	w.restart()
	require.Contains(t, w.lines(), sandboxLine)
}

func TestFiftyContainersAtOnce(t *testing.T) {
	w := newWorld(t)
	empty := w.lines()
	w.createNetwork(net1, 1)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			id, path := fmt.Sprintf("%016x", (i+1)<<20), fmt.Sprintf("/netns/%d", i)
			for range 5 {
				if _, err := w.CreateEndpoint(ctx, endpoint(id, net1, 1, i+2)); err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 {
					w.kernel.addNetns(path)
				}
				_, err := w.Join(ctx, net1, id, path)
				if i%2 == 1 {
					w.kernel.addNetns(path) // as on 20.10
				}
				_, _, _ = w.Networks(), w.Endpoints(), err
				if err != nil {
					t.Error(err)
				}
				if err := w.Leave(ctx, net1, id); err != nil {
					t.Error(err)
				}
				if err := w.DeleteEndpoint(ctx, net1, id); err != nil {
					t.Error(err)
				}
				w.kernel.removeNetns(path)
			}
		})
	}
	for range 20 {
		w.SetNetworkName(net1, "shop")
	}
	all.Wait()
	require.NoError(t, w.DeleteNetwork(ctx, net1))
	require.Empty(t, cmp.Diff(empty, w.lines()))
}

// An endpoint of a runtime of CNI that never joined is of an ADD that died: a start removes it. One that joined stays.
func TestUnjoinedEndpointOfCNI(t *testing.T) {
	w := newWorld(t)
	w.createNetwork("net1", 1)
	for i, id := range []string{"joined00000000", "unjoined0000000"} {
		c := endpoint(id, "net1", 1, i+2)
		c.Source = SourceCNI
		_, err := w.CreateEndpoint(ctx, c)
		require.NoError(t, err)
	}
	w.kernel.addNetns("/proc/1/ns/net")
	w.join("joined00000000", "/proc/1/ns/net")
	w.restart()
	require.Len(t, w.Endpoints(), 1)
	require.Equal(t, "joined00000000", w.Endpoints()[0].ID)
	require.NoError(t, w.DeleteEndpoint(ctx, "", "unjoined0000000"), "as the runtime does after it")
}

// While the kernel removes a pair, others come and go; who wants the address of the one that goes gets it.
func TestOthersGoOnWhileAPairIsRemoved(t *testing.T) {
	w := newWorld(t)
	w.createNetwork("net1", 1)
	w.createEndpoint("leaving00000000", "net1", 1, 2)
	w.createEndpoint("staying00000000", "net1", 1, 3)
	w.kernel.whileDeleting = func() {
		w.createEndpoint("another00000000", "net1", 1, 4)
		w.createEndpoint("heir00000000000", "net1", 1, 2)
		w.remove("staying00000000")
	}
	w.remove("leaving00000000")
	var ids []string
	for _, e := range w.Endpoints() {
		ids = append(ids, e.ID)
	}
	require.ElementsMatch(t, []string{"another00000000", "heir00000000000"}, ids)
	w.remove("another00000000")
	w.remove("heir00000000000")
	require.NoError(t, w.DeleteNetwork(ctx, "net1"))
	w.restart()
	require.Empty(t, w.Endpoints())
}
