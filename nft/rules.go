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
			// an ICMP error may come while the socket is busy connecting, which then tries again after a second
			a.rule(refuse, f.is(), f.loadsDaddr(reg), f.isIn(p), protocolIs(unix.IPPROTO_TCP), resets())
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
		b.translate(a, ch, f)
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

// translate adds the rules that lead to the frontend's targets: each takes its share of what the ones before it left.
// (A map of targets would be one rule, but to name ten thousand maps takes the kernel longer than a caller waits.)
func (b *base) translate(a adder, ch *nftables.Chain, f frontend) {
	left := len(f.targets)
	if left == 0 {
		a.rule(ch, going(chainRefused))
		return
	}
	var mark []expr.Any
	if f.hand {
		mark = marks(markHand)
	}
	fam := familyOf(f.Addr)
	for i := 0; i < len(f.targets); {
		t, share := f.targets[i], 0
		for i < len(f.targets) && f.targets[i] == t {
			i, share = i+1, share+1
		}
		var chosen []expr.Any
		if share < left {
			chosen = f.choose(left, share, i)
		}
		left -= share
		nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: fam.proto, RegAddrMin: reg}
		to := []expr.Any{&expr.Immediate{Register: reg, Data: t.Addr().AsSlice()}}
		if t.Port() != 0 {
			nat.RegProtoMin, nat.Specified = fam.after(), true
			to = append(to, &expr.Immediate{Register: fam.after(), Data: port(t.Port())})
		}
		a.rule(ch, chosen, mark, to, nat)
	}
}

// choose matches share of left flows at random. With affinity it is those of the clients whose number is below upTo: the same
// for a client as long as the slots are the same, for the kernel remembers none here.
func (f frontend) choose(left, share, upTo int) []expr.Any {
	below := func(n int) []expr.Any {
		return []expr.Any{
			&expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpLt, Register: reg, Data: binaryutil.BigEndian.PutUint32(uint32(n))},
		}
	}
	if !f.affinity {
		return rule(&expr.Numgen{Register: reg, Modulus: uint32(left), Type: unix.NFT_NG_RANDOM}, below(share))
	}
	fam := familyOf(f.Addr)
	const seed = Mark // the same in all rules, and not 0, for which the kernel would take a random one
	return rule(fam.loadsSaddr(reg), &expr.Hash{
		SourceRegister: reg, DestRegister: reg, Length: fam.addr, Modulus: uint32(len(f.targets)), Seed: seed, Type: expr.HashTypeJenkins,
	}, below(upTo))
}
