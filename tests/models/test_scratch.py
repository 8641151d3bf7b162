def test_x(make_tiny, ask, reference):
    t=make_tiny(); m=t.load()
    for w in ["stop","short","long","tool","toolfirst","line","pause","forever"]:
        try:
            g=m.generate(ask("word1 word3 "+w)); print(w,repr(g.text),g.tokens,g.finish_reason,g.statistics, {k:float(v.mean()) for k,v in g.signatures.items()})
        except Exception as e: print(w, repr(e))
    t=make_tiny(chat_template=None); m=t.load()
    for w in ["stop","short","long","tool","toolfirst","line","pause","forever"]:
        try:
            g=m.generate(ask("word1 word3 "+w)); print(w,repr(g.text),g.tokens,g.finish_reason,g.statistics, {k:float(v.mean()) for k,v in g.signatures.items()})
        except Exception as e: print(w, repr(e))
    print(m._end_tokens,t.ids)
