"""The server: an OpenAI-compatible API, and a page, over one engine.

A request becomes ids, ids become a reply. `schema` checks what came in, `messages` and `settings` make prompt and
config of it, `jobs` carries ids from the engine's thread to the event loop, `reader` turns them into words and pictures as they
come, `replies` writes these down as OpenAI objects, `app` has the routes and `limits` what is refused before any of it.
"""
