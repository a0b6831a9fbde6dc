// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bpf"
)

// The marks of flows.
const (
	markRefused     = Mark + iota + 1 // to a VIP where nothing serves
	markUnreachable                   // to a service address that the sandbox may not reach
	markHand                          // translated for a hand-made service
)

// beforeEngine is before the rules of the engine and of whoever runs nested in the sandbox: the first chain that
// translates a flow is the only one.
const beforeEngine = -101

// The chains that others jump to.
const (
	chainRefused = "refused" // nat: what a VIP does not serve
	chainUnknown = "unknown" // nat: service addresses that are nobody's, or another network's
	chainRefuse  = "refuse"  // filter: what was not translated
)

// base is the part of a sandbox's table that does not depend on its services.
type base struct {
	table *nftables.Table
	pools [2]netip.Prefix
	maps  [2]struct{ exact, ports, heads, vips *nftables.Set } // by family
}

// newBase names what the table has. The maps lead from {address, protocol, port}, {address, port} and {address} to the chain
// of the frontend, in the order of bpf/src/lb.h.
func newBase(t *nftables.Table, pools [2]netip.Prefix) *base {
	b := &base{table: t, pools: pools}
	for i := range families {
		f := &families[i]
		named := func(name string, kinds ...nftables.SetDatatype) *nftables.Set {
			s := &nftables.Set{Table: t, Name: name + f.suffix, KeyType: kinds[0], IsMap: true, DataType: nftables.TypeVerdict}
			if len(kinds) > 1 {
				s.KeyType, s.Concatenation = nftables.MustConcatSetType(kinds...), true
			}
			return s
		}
		m := &b.maps[i]
		m.exact = named("exact", f.kind, nftables.TypeInetProto, nftables.TypeInetService)
		m.ports = named("ports", f.kind, nftables.TypeInetService)
		m.heads = named("heads", f.kind)
		m.vips = &nftables.Set{Table: t, Name: "vips" + f.suffix, KeyType: f.kind}
	}
	return b
}

// adder adds chains and rules to a table.
type adder struct {
	c     *nftables.Conn
	table *nftables.Table
}

func (a adder) chain(name string) *nftables.Chain {
	return a.c.AddChain(&nftables.Chain{Name: name, Table: a.table})
}

func (a adder) hook(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority int32) *nftables.Chain {
	return a.c.AddChain(&nftables.Chain{
		Name: name, Table: a.table, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)),
	})
}

func (a adder) rule(c *nftables.Chain, parts ...any) {
	a.c.AddRule(&nftables.Rule{Table: a.table, Chain: c, Exprs: rule(parts...)})
}

func (b *base) add(c *nftables.Conn) error {
	a := adder{c, b.table}
	for i := range b.maps {
		m := &b.maps[i]
		for _, s := range []*nftables.Set{m.exact, m.ports, m.heads, m.vips} {
			if err := c.AddSet(s, nil); err != nil {
				return err
			}
		}
	}
	// a refused datagram goes to the loopback device and is rejected there: rejected where it is sent, the
	// sender would learn nothing but EPERM
	refused, unknown := a.chain(chainRefused), a.chain(chainUnknown)
	a.rule(refused, protocolIs(unix.IPPROTO_UDP), marks(markRefused), &expr.Redir{})
	a.rule(unknown, protocolIs(unix.IPPROTO_UDP), marks(markUnreachable), &expr.Redir{})
	output := a.hook("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, beforeEngine)
	prerouting := a.hook("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, beforeEngine)
	for i := range families {
		services := b.services(a, i)
		for _, c := range []*nftables.Chain{output, prerouting} {
			a.rule(c, families[i].is(), jumps(services.Name))
		}
	}
	// the way to a hand-made VIP need not be the way to its backend
	postrouting := a.hook("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, int32(*nftables.ChainPriorityNATSource)-1)
	a.rule(postrouting, isMarked(markHand), loads(expr.MetaKeyOIFNAME, reg), differs(reg, ifname("lo")), &expr.Masq{})
	b.addFilters(a)
	return nil
}

// services adds the chain of a family that finds a packet's frontend.
func (b *base) services(a adder, i int) *nftables.Chain {
	f, m := &families[i], &b.maps[i]
	c := a.chain("services" + f.suffix)
	a.rule(c, f.is(), f.isEcho(), f.loadsDaddr(reg), in(m.vips), &expr.Redir{}) // the VIP answers
	for _, p := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		a.rule(c, f.is(), protocolIs(p), f.loadsDaddr(reg), loads(expr.MetaKeyL4PROTO, f.after()), loadsDport(f.after()+1), follows(m.exact))
		a.rule(c, f.is(), protocolIs(p), f.loadsDaddr(reg), loadsDport(f.after()), follows(m.ports))
		a.rule(c, f.is(), protocolIs(p), f.loadsDaddr(reg), follows(m.heads))
	}
	if p := b.pools[i]; p.IsValid() {
		a.rule(c, f.is(), f.loadsDaddr(reg), f.isIn(p), going(chainUnknown))
	}
	return c
}

// addFilters adds what tells senders that nothing serves them. No packet to a service address leaves the sandbox.
func (b *base) addFilters(a adder) {
	input := a.hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput, 0)
	// not the rejection itself, which comes back on the same flow
	isNew := stateIs(expr.CtStateBitNEW)
	a.rule(input, isNew, isMarked(markRefused), rejects(unix.NFT_REJECT_ICMPX_PORT_UNREACH))
	a.rule(input, isNew, isMarked(markUnreachable), rejects(unix.NFT_REJECT_ICMPX_HOST_UNREACH))
	refuse := a.chain(chainRefuse)
	for i := range families {
		f := &families[i]
		toVIP := rule(f.is(), f.loadsDaddr(reg), in(b.maps[i].vips))
		a.rule(refuse, toVIP, protocolIs(unix.IPPROTO_TCP), resets())
		a.rule(refuse, toVIP, rejects(unix.NFT_REJECT_ICMPX_PORT_UNREACH))
		if p := b.pools[i]; p.IsValid() {
			a.rule(refuse, f.is(), f.loadsDaddr(reg), f.isIn(p), rejects(unix.NFT_REJECT_ICMPX_HOST_UNREACH))
		}
	}
	for name, hook := range map[string]*nftables.ChainHook{"outgoing": nftables.ChainHookOutput, "forwarded": nftables.ChainHookForward} {
		a.rule(a.hook(name, nftables.ChainTypeFilter, hook, 0), jumps(chainRefuse))
	}
}

// elements are where a frontend stands in the maps.
func (b *base) elements(f bpf.Frontend) (in []*nftables.Set, elements [][]nftables.SetElement) {
	fam := familyOf(f.Addr)
	m := &b.maps[0]
	if fam != &families[0] {
		m = &b.maps[1]
	}
	addr := f.Addr.AsSlice()
	to := expr.Verdict{Kind: expr.VerdictGoto, Chain: chainName(f)}
	add := func(s *nftables.Set, key []byte, v *expr.Verdict) {
		in, elements = append(in, s), append(elements, []nftables.SetElement{{Key: key, VerdictData: v}})
	}
	switch {
	case f == f.Head():
		add(m.heads, addr, &to)
		add(m.vips, addr, nil)
	case f.Protocol == bpf.ProtocolAny:
		add(m.ports, padded(addr, port(f.Port)), &to)
	default:
		add(m.exact, padded(addr, []byte{byte(f.Protocol)}, port(f.Port)), &to)
	}
	return in, elements
}

// put adds or replaces frontends.
func (b *base) put(c *nftables.Conn, all []frontend) error {
	a := adder{c, b.table}
	for _, f := range all {
		ch := a.chain(chainName(f.Frontend))
		c.FlushChain(ch)
		if err := b.translate(a, ch, f); err != nil {
			return err
		}
		sets, elements := b.elements(f.Frontend)
		for i := range sets {
			if err := c.SetAddElements(sets[i], elements[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *base) remove(c *nftables.Conn, gone []bpf.Frontend) error {
	for _, f := range gone {
		sets, elements := b.elements(f)
		for i := range sets {
			if err := c.SetDeleteElements(sets[i], elements[i]); err != nil {
				return err
			}
		}
		ch := &nftables.Chain{Table: b.table, Name: chainName(f)}
		c.FlushChain(ch)
		c.DelChain(ch)
	}
	return nil
}

// translate adds the rules that lead to the frontend's targets. Those with a port of their own and those
// without take two rules, as a translation either names ports or does not.
func (b *base) translate(a adder, ch *nftables.Chain, f frontend) error {
	if len(f.targets) == 0 {
		a.rule(ch, going(chainRefused))
		return nil
	}
	var mark []expr.Any
	if f.hand {
		mark = marks(markHand)
	}
	var withPort, without []netip.AddrPort
	for _, t := range f.targets {
		if t.Port() != 0 {
			withPort = append(withPort, t)
		} else {
			without = append(without, t)
		}
	}
	if len(withPort) > 0 {
		var some []expr.Any
		if len(without) > 0 {
			some = rule(f.choose(len(f.targets), 1), &expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: 4, Size: 4},
				&expr.Cmp{Op: expr.CmpOpLt, Register: reg, Data: binaryutil.BigEndian.PutUint32(uint32(len(withPort)))})
		}
		if err := b.spread(a, ch, f, withPort, rule(some, mark)); err != nil {
			return err
		}
	}
	if len(without) > 0 {
		return b.spread(a, ch, f, without, mark)
	}
	return nil
}

// choose puts a number below n into the first register: the same for each client with affinity. The kernel
// has no memory for more, as long as the slots stay the same a client stays with its backend.
func (f frontend) choose(n int, seed uint32) []expr.Any {
	if !f.affinity {
		return []expr.Any{&expr.Numgen{Register: reg, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM}}
	}
	fam := familyOf(f.Addr)
	return []expr.Any{
		fam.loadsSaddr(reg),
		&expr.Hash{SourceRegister: reg, DestRegister: reg, Length: fam.addr, Modulus: uint32(n), Seed: seed, Type: expr.HashTypeJenkins},
	}
}

// spread adds a rule that leads to one of the targets, all of which have a port or none of which has.
func (b *base) spread(a adder, ch *nftables.Chain, f frontend, targets []netip.AddrPort, first []expr.Any) error {
	fam := familyOf(f.Addr)
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: fam.proto, RegAddrMin: reg}
	m := &nftables.Set{
		Table: b.table, Anonymous: true, Constant: true, IsMap: true,
		KeyType: nftables.TypeInteger, DataType: fam.kind, KeyByteOrder: binaryutil.NativeEndian,
	}
	if targets[0].Port() != 0 {
		m.DataType = nftables.MustConcatSetType(fam.kind, nftables.TypeInetService)
		nat.RegProtoMin, nat.Specified = fam.after(), true
	}
	var elements []nftables.SetElement
	for i, t := range targets {
		e := nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: t.Addr().AsSlice()}
		if t.Port() != 0 {
			e.Val = padded(e.Val, port(t.Port()))
		}
		elements = append(elements, e)
	}
	if err := a.c.AddSet(m, elements); err != nil {
		return err
	}
	a.rule(ch, first, f.choose(len(targets), 2),
		&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: m.Name, SetID: m.ID}, nat)
	return nil
}
