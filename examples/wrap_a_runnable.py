"""Guard a chain in one line: the guard taps its model in the pass that answers, and the output keeps its type.

python examples/wrap_a_runnable.py
"""

import sys
from pathlib import Path

import torch
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from transformers import BitsAndBytesConfig

from ilis_guard import Guard
from ilis_guard.models.weights import converted_folder, packaged_weights
from ilis_guard_langchain import wrap

CONFIG, *COUNTRIES = sys.argv[1:] or [str(Path(__file__).with_name("guard.yaml")), "Norway", "Kenya", "Cuba"]
NF4 = BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # transformers types it partly
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)

if __name__ == "__main__":
    # An ordinary chain with the model that the guard's bundle was fitted to.
    llm = HuggingFacePipeline.from_model_id(
        str(converted_folder(packaged_weights("smollm2-135m-instruct"))),
        task="text-generation",
        model_kwargs={"quantization_config": NF4, "dtype": torch.float32},
        pipeline_kwargs={"max_new_tokens": 16, "do_sample": False, "return_full_text": False},
    )
    prompt = ChatPromptTemplate.from_template("What is the capital of {country}? Answer in a few words only.")
    chain = prompt | ChatHuggingFace(llm=llm) | StrOutputParser()
    guarded = wrap(chain, Guard.from_config(CONFIG))
    for country in COUNTRIES:
        print(f"{country}: {guarded.invoke({'country': country})}")
