// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// say writes an answer on one line.
func say(a Answer) string {
	switch {
	case a.Known:
		return fmt.Sprint(append(a.Addrs4, a.Addrs6...))
	}
	return "engine"
}

// officeWorld has a second network with both families, whose sole member is box-3, and a client on both.
// vip has the VIPs of every service by its name and network.
func officeWorld(t *testing.T) (w *world, client Container, vip map[string]string) {
	w = shopWorld(t, PhaseReady, PhaseUnhealthy)
	_, err := w.AddNetwork(Network{ID: "n2", Number: 2, Name: "back.office", IPv4: true, IPv6: true, VIP: true})
	require.NoError(t, err)
	ep, c := replica(3, PhaseReady, "sole", "web")
	ep.Network, ep.IPv6 = "n2", addr("fd00::3")
	w.run(t, ep, c)
	// The client is on both networks.
	ep, c = replica(9, PhaseReady)
	w.run(t, ep, c)
	ep.ID, ep.Network, ep.IPv4 = "ep9b", "n2", addr("172.21.0.9")
	require.NoError(t, w.PutEndpoint(ep))
	c.Aliases["ep9b"] = nil
	w.PutContainer(c)
	off, cOff := replica(4, PhaseReady, "plain")
	cOff.Labels = map[string]string{"mustang.vip": "off"}
	w.run(t, off, cOff)

	vip = map[string]string{}
	for _, v := range w.List() {
		s := v.Frontends[0].Addr.String()
		if len(v.Frontends) > 1 {
			s += " " + v.Frontends[1].Addr.String()
		}
		vip[v.Name+"."+v.Network] = "[" + s + "]"
	}
	return w, c, vip
}

func TestResolve(t *testing.T) {
	w, c, vip := officeWorld(t)
	tests := []struct {
		cookie     uint64
		name, want string
	}{
		{109, "web", vip["web.back.office"]}, // both families come first
		{109, "WEB.", vip["web.back.office"]},
		{109, "web.shop", vip["web.shop"]},
		{109, "web.SHOP", vip["web.shop"]},
		{109, "web.back.office", vip["web.back.office"]},
		{109, "tasks.web.shop", "[172.20.0.1]"},
		{109, "tasks.sole", "[172.20.0.3 fd00::3]"},
		{109, "box-1", "engine"},
		{109, "plain", "engine"},
		{109, "nobody", "engine"},
		{109, "example.com", "engine"},
		{109, "", "engine"},
		{109, ".", "engine"},
		{103, "sole", "[172.20.0.3 fd00::3]"},
		{101, "web", vip["web.shop"]},
		{101, "sole", "engine"},
		{7, "web", "engine"},
	}
	for _, tt := range tests {
		require.Equal(t, tt.want, say(w.Resolve(tt.cookie, tt.name)), "%d %q", tt.cookie, tt.name)
	}

	for _, v := range w.List() {
		for _, f := range v.Frontends {
			name, ok := w.ResolvePTR(109, f.Addr)
			require.True(t, ok)
			require.Equal(t, v.Name+"."+v.Network, name)
			// A sandbox hears of its own networks alone.
			_, ok = w.ResolvePTR(101, f.Addr)
			require.Equal(t, v.Network == "shop", ok)
			_, ok = w.ResolvePTR(7, f.Addr)
			require.False(t, ok)
		}
	}
	_, ok := w.ResolvePTR(109, addr("172.20.0.1"))
	require.False(t, ok)
	hand := spec("10.96.0.7:80", "10.1.0.1")
	hand.Name = "everywhere"
	_, err := w.Add(hand)
	require.NoError(t, err)
	for _, cookie := range []uint64{101, 109, 7} {
		name, ok := w.ResolvePTR(cookie, hand.Frontend.Addr)
		require.True(t, ok)
		require.Equal(t, "everywhere", name)
	}

	// With priorities the engine's order changes.
	c.Priorities = map[string]int{"ep9": 5}
	w.PutContainer(c)
	require.Equal(t, vip["web.shop"], say(w.Resolve(109, "web")))

	// The last member goes: the name stays and its VIP refuses, unless a container is called so.
	w.RemoveContainer("c0003")
	require.NoError(t, w.RemoveEndpoint("ep3"))
	require.Equal(t, vip["sole.back.office"], say(w.Resolve(109, "sole")))
	require.Equal(t, "[]", say(w.Resolve(109, "tasks.sole")))
	ep5, c5 := replica(5, PhaseReady, "sole")
	require.NoError(t, w.PutEndpoint(ep5))
	w.PutContainer(c5)
	require.NotEqual(t, vip["sole.back.office"], say(w.Resolve(109, "sole")), "somebody has it on another network")
	require.Equal(t, say(w.Resolve(109, "sole.shop")), say(w.Resolve(109, "sole")))
	require.Equal(t, vip["sole.back.office"], say(w.Resolve(109, "sole.back.office")))
	w.RemoveContainer(c5.ID)
	require.NoError(t, w.RemoveEndpoint(ep5.ID))
	c.Name = "sole"
	w.PutContainer(c)
	require.Equal(t, "engine", say(w.Resolve(109, "sole")))
}

func TestUnreadEndpoints(t *testing.T) {
	w := shopWorld(t, PhaseReady)
	require.Equal(t, "engine", say(w.Resolve(101, "db")))
	changed := w.Changed()
	ep, c := replica(2, PhaseReady, "db")
	require.NoError(t, w.PutEndpoint(ep))
	<-changed
	require.True(t, w.Unread(ep.IPv4))
	require.Equal(t, "engine", say(w.Resolve(101, "db")))
	changed = w.Changed()
	w.PutContainer(c)
	<-changed
	require.False(t, w.Unread(ep.IPv4))
	require.Equal(t, "["+w.vip(t, "db")+"]", say(w.Resolve(101, "db")))
	require.False(t, w.Unread(addr("8.8.8.8")))
}
