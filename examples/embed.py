"""Fine-tune from a program and ask the result: `python embed.py data=rows.jsonl checkpoint=DIR steps=100`."""

import sys

import ftcore

keys = {"method": "lora", "task": "causal", "model": "qwen", "output": "runs/embed"}
done = ftcore.run(**(keys | dict(argument.split("=", 1) for argument in sys.argv[1:])))

loaded = ftcore.attach(done.output)
prompt = loaded.tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is the opposite of big?"}], add_generation_prompt=True, return_dict=True,
    return_tensors="pt",
)  # fmt: skip
answer = loaded.model.generate(**prompt, max_new_tokens=32, do_sample=False, eos_token_id=list(loaded.stop_ids))
sys.stdout.write(loaded.tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True) + "\n")
