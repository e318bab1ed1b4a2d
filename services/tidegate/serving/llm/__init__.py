"""The LLM server: ``tidegate.llm.v1.LlmService`` on vLLM's AsyncLLM.

    python -m tidegate.serving.llm --model-repository models --model-name smollm2

A request passes through one module after another: `requests` reads it and refuses what is wrong,
`prompts` turns it into token ids, `grammar` tries its constraint out in a process of its own,
`admission` bounds how many are held, `engine` runs it on vLLM, `answer` makes messages of what
comes, and `service` is the RPCs themselves. Only `engine` and `prompts` know vLLM.
"""
