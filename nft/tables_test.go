// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/bpf"
)

func TestASandboxHasTheServicesOfItsNetworksAndThoseOfNone(t *testing.T) {
	w := newWorld(t)
	w.source.backends = []bpf.Backend{backend(2), backend(3)}
	w.source.services = []bpf.Service{
		{Frontend: vip(1), ID: 1, Network: 7, Slots: []uint32{2, 3, 3}},
		{Frontend: vip(2), ID: 2, Network: 8, Slots: []uint32{2}},
		{Frontend: vip(3), ID: 3, Slots: []uint32{3}, Affinity: 60},
		{Frontend: vip(4), ID: 4, Slots: []uint32{3}, Published: true}, // the host's, and none of a sandbox's
	}
	require.NoError(t, w.PutService(w.source.services[0]))
	require.NoError(t, w.Flush())
	require.Zero(t, w.source.reads, "without sandboxes nothing is remembered")
	w.put(1, 0, 7)
	w.put(2, 0, 8, 9)
	require.Equal(t, []string{
		"NONE:10.96.1.1:0 [10.0.0.2:0 10.0.0.3:0 10.0.0.3:0] hand false affinity false",
		"NONE:10.96.1.3:0 [10.0.0.3:0] hand true affinity true",
	}, w.one.lines())
	require.Equal(t, []string{
		"NONE:10.96.1.2:0 [10.0.0.2:0] hand false affinity false",
		"NONE:10.96.1.3:0 [10.0.0.3:0] hand true affinity true",
	}, w.two.lines())
	require.Equal(t, 1, w.source.reads)
}

func TestAChangeIsWrittenWhereItMatters(t *testing.T) {
	w := newWorld(t)
	w.put(1, 0, 7)
	w.put(2, 0, 8)
	require.NoError(t, w.PutBackend(backend(2)))
	require.NoError(t, w.PutService(bpf.Service{Frontend: vip(1), ID: 1, Network: 7, Slots: []uint32{2}}))
	require.NoError(t, w.PutService(bpf.Service{Frontend: vip(4), ID: 4, Slots: []uint32{2}, Published: true}))
	require.NoError(t, w.Flush())
	require.Equal(t, []string{"NONE:10.96.1.1:0 [10.0.0.2:0] hand false affinity false"}, w.one.lines())
	require.Empty(t, w.two.lines())
	require.NoError(t, w.PutService(bpf.Service{Frontend: vip(1), ID: 1, Network: 8, Slots: []uint32{2}}))
	require.NoError(t, w.Flush())
	require.Empty(t, w.one.lines(), "it is another network's now")
	require.Len(t, w.two.lines(), 1)
	require.NoError(t, w.DeleteService(vip(1)))
	require.NoError(t, w.Flush())
	require.NoError(t, w.DeleteService(vip(1)), "a missing one is no error")
	require.NoError(t, w.Flush())
	require.Empty(t, w.two.lines())
	require.Equal(t, 1, w.one.replaced+w.two.replaced-1, "by changes")
}

func TestWhatAChangeBreaksIsWrittenAnew(t *testing.T) {
	w := newWorld(t)
	w.put(1, 0, 7)
	require.NoError(t, w.PutBackend(backend(2)))
	w.one.broken = true
	require.NoError(t, w.PutService(bpf.Service{Frontend: vip(1), ID: 1, Network: 7, Slots: []uint32{2}}))
	require.NoError(t, w.Flush())
	require.Equal(t, 2, w.one.replaced)
	require.Len(t, w.one.lines(), 1)
	w.one.dead = true
	require.NoError(t, w.PutService(bpf.Service{Frontend: vip(2), ID: 2, Network: 7, Slots: []uint32{2}}))
	require.NoError(t, w.Flush())
	require.ErrorContains(t, w.State().Err, "write the tables of the sandbox "+path1+": broken")
	w.one.dead = false
	_, err := w.Check()
	require.NoError(t, err)
	require.Len(t, w.one.lines(), 2)
	require.NoError(t, w.State().Err)
}

func TestASandboxThatRefusesHoldsUpNoOther(t *testing.T) {
	w := newWorld(t)
	w.put(1, 0, 7)
	require.NoError(t, w.PutBackend(backend(2)))
	w.one.dead, w.unable = true, true
	require.NoError(t, w.PutService(bpf.Service{Frontend: vip(1), ID: 1, Network: 7, Slots: []uint32{2}}))
	require.NoError(t, w.Flush())
	w.put(2, 0, 7)
	require.Len(t, w.two.lines(), 1)
	require.NoError(t, w.DeleteBackend(2))
	require.Equal(t, []string{path2 + " invalid IP 10.0.0.2"}, w.forgot)
	require.ErrorIs(t, w.State().Err, errBroken)
	require.ErrorIs(t, w.PutSandbox(Sandbox{Cookie: 1, Path: path1}), errBroken, "it is the caller's own")

	w.one.dead = false
	_, err := w.Check()
	require.NoError(t, err)
	require.ErrorIs(t, w.State().Err, errBroken, "flows are left")
	w.unable = false
	_, err = w.Check()
	require.NoError(t, err)
	require.NoError(t, w.State().Err)
	require.ElementsMatch(t, []string{
		path2 + " invalid IP 10.0.0.2", path1 + " 10.96.1.1 127.0.0.1", path1 + " invalid IP 10.0.0.2",
	}, w.forgot)
}

func TestResolversStayTrustedWhileManySandboxesAreWritten(t *testing.T) {
	w := newWorld(t)
	w.put(1, 5353, 7)
	w.put(2, 0, 7)
	w.Beat()
	change := func() {
		require.NoError(t, w.PutService(bpf.Service{Frontend: vip(1), ID: 1, Network: 7}))
		require.NoError(t, w.Flush())
	}
	change()
	require.Equal(t, 1, w.one.beats)
	w.beaten = w.beaten.Add(-trusted)
	change()
	require.Equal(t, 2, w.one.beats, "once, not for each")
}

func TestASandboxIsOpenedOnlyWhereItIs(t *testing.T) {
	w := newWorld(t)
	err := w.PutSandbox(Sandbox{Cookie: 1, Path: path2, Networks: []uint32{7}})
	require.ErrorContains(t, err, "there is no such sandbox: another namespace is at "+path2)
	require.Nil(t, w.two.has)
	require.Zero(t, w.two.open)
	w.Know([]Sandbox{{Cookie: 1, Path: path2}})
	require.NoError(t, w.DeleteSandbox(1, path2))
	require.Zero(t, w.two.open)
	w.two.dead = true
	require.ErrorIs(t, w.DeleteSandbox(2, path2), errBroken)
	require.Zero(t, w.two.open, "nobody knows it afterwards")
	w.two.dead = false
	w.put(2, 0, 7)
	require.Equal(t, 1, w.two.open)
	require.NoError(t, w.DeleteSandbox(2, path2))
	require.Zero(t, w.two.open)
}

func TestACommandChangesWhatADaemonWrote(t *testing.T) {
	w := newWorld(t)
	w.source.backends = []bpf.Backend{backend(2)}
	w.source.services = []bpf.Service{{Frontend: vip(1), ID: 1, Slots: []uint32{2}}}
	w.put(1, 0, 7)
	w.start()
	w.Know([]Sandbox{{Cookie: 1, Path: path1, Networks: []uint32{7}}, {Cookie: 3, Path: "/run/netns/ended"}, {Cookie: 4, Path: path2}})
	require.Equal(t, 1, w.State().Sandboxes)
	require.NoError(t, w.PutService(bpf.Service{Frontend: vip(3), ID: 3, Slots: []uint32{2}}))
	require.NoError(t, w.Flush())
	require.NoError(t, w.DeleteService(vip(1)))
	require.NoError(t, w.Flush())
	require.Equal(t, []string{"NONE:10.96.1.3:0 [10.0.0.2:0] hand true affinity false"}, w.one.lines())
	require.Equal(t, 1, w.one.replaced, "what the daemon wrote stands")
}

func TestUDPFlowsEndWithTheirBackendAndWithARefusal(t *testing.T) {
	w := newWorld(t)
	w.put(1, 0, 7)
	require.NoError(t, w.PutBackend(backend(2)))
	s := bpf.Service{Frontend: vip(1), ID: 1, Network: 7}
	require.NoError(t, w.PutService(s))
	require.NoError(t, w.Flush())
	require.Empty(t, w.forgot)
	s.Slots = []uint32{2}
	require.NoError(t, w.PutService(s))
	require.NoError(t, w.Flush())
	require.Equal(t, []string{path1 + " 10.96.1.1 127.0.0.1"}, w.forgot, "who was refused may ask again")
	require.NoError(t, w.PutService(s))
	require.NoError(t, w.Flush())
	require.Len(t, w.forgot, 1)
	again := backend(2)
	again.ID = 9
	require.NoError(t, w.PutBackend(again))
	require.NoError(t, w.DeleteBackend(2))
	require.Len(t, w.forgot, 1, "it goes on under another id")
	require.NoError(t, w.DeleteBackend(9))
	require.Equal(t, path1+" invalid IP 10.0.0.2", w.forgot[1])
	require.NoError(t, w.DeleteBackend(9))
	require.Len(t, w.forgot, 2)
}

func TestNamesGoWithTheSandbox(t *testing.T) {
	w := newWorld(t)
	w.put(1, 5353, 7)
	w.put(2, 0, 7)
	w.Beat()
	require.Equal(t, []int{1, 0}, []int{w.one.beats, w.two.beats})
	require.EqualValues(t, 5353, w.one.port)
	require.Equal(t, State{Sandboxes: 2}, w.State())
	w.one.dead, w.one.port = true, 0
	w.Beat()
	require.EqualValues(t, 5353, w.one.port, "made again")
	require.ErrorIs(t, w.DeleteSandbox(1, path1), errBroken)
	w.one.dead = false
	require.NoError(t, w.DeleteSandbox(1, path1))
	require.Nil(t, w.one.has)
	require.NoError(t, w.DeleteSandbox(1, path1))
	require.NoError(t, w.DeleteSandbox(5, path2), "another sandbox's path")
	require.NotNil(t, w.two.has)
	w.start()
	require.NoError(t, w.DeleteSandbox(2, path2), "of a process before us")
	require.Nil(t, w.two.has)
}

func TestTheHostsTablesAreMended(t *testing.T) {
	w := newWorld(t)
	mended, err := w.Check()
	require.NoError(t, err)
	require.False(t, mended)
	ends := []End{{Name: "mst1", Network: 7}}
	require.NoError(t, w.SetEnds(ends))
	mended, err = w.Check()
	require.NoError(t, err)
	require.False(t, mended)
	w.kernel.ends, w.kernel.flush = nil, true
	mended, err = w.Check()
	require.NoError(t, err)
	require.True(t, mended)
	require.Equal(t, ends, w.kernel.ends)
	w.kernel.half = true
	require.ErrorIs(t, w.SetEnds(nil), errBroken)
	require.ErrorIs(t, w.State().Err, errBroken)
	w.kernel.half = false
	for _, want := range []bool{true, false} {
		mended, err = w.Check()
		require.NoError(t, err)
		require.Equal(t, want, mended, "towards what is wanted")
	}
	require.Empty(t, w.kernel.ends)
	require.NoError(t, w.State().Err)
	w.kernel.broken = true
	require.ErrorContains(t, w.Supported(), "CONFIG_NFT_NAT")
	require.ErrorContains(t, w.SetEnds(nil), "write the nftables of 0 devices: broken")
}

func TestChainNames(t *testing.T) {
	for _, f := range []bpf.Frontend{
		vip(1), {Addr: vip(1).Addr, Port: 5201}, {Addr: vip(1).Addr, Port: 53, Protocol: bpf.ProtocolUDP},
		{Addr: netip.MustParseAddr("fd6d:7374:10::77"), Port: 80, Protocol: bpf.ProtocolTCP},
	} {
		got, ok := parseChain(chainName(f))
		require.True(t, ok, chainName(f))
		require.Equal(t, f, got)
	}
	for _, name := range []string{"services4", "output", "vip4_x_1_2", "vip4_10-96-0-1_80", "vip4_10-96-0-1_a_b"} {
		_, ok := parseChain(name)
		require.False(t, ok, name)
	}
}

func TestRulesInTheEnginesChain(t *testing.T) {
	ends := []End{{Name: "mst1"}, {Name: "mst2"}, {Name: "br-own", Kind: Bridge}, {Name: "mst3", Kind: Port}, {Name: "msh1", Kind: Slave}}
	require.Equal(t, []string{"mst+", "br-own"}, through(ends))
	for _, name := range through(ends) {
		r := &nftables.Rule{Exprs: between(name), UserData: userdata.AppendString(nil, userdata.TypeComment, comment)}
		got, ours := device(r)
		require.True(t, ours)
		require.Equal(t, name, got)
		r.UserData = nil
		_, ours = device(r)
		require.False(t, ours, "an operator's")
	}
	require.True(t, onlyReturns(&nftables.Rule{Exprs: []expr.Any{&expr.Counter{}, returns}}))
	require.False(t, onlyReturns(&nftables.Rule{Exprs: between("mst+")}))
	require.False(t, onlyReturns(&nftables.Rule{Exprs: rule(loads(expr.MetaKeyIIFNAME, 1), returns)}))
}
